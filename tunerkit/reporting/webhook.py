"""Messages of a run to addresses of the web, posted by threads of their own: the training never waits for one."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunerkit import __version__
from tunerkit.config.reporting_rules import Webhook, webhooks_of
from tunerkit.reporting.listening import Listener
from tunerkit.reporting.messages import Message, of_activity, of_event, of_preview, of_step
from tunerkit.reporting.trackers import run_name

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")
WAITING = 200
"""Messages that wait at most; beyond, the oldest ones are dropped, reports of steps before anything else."""
TRIES = 4
"""How often a message is posted before it is given up."""
BACK_OFF_SECONDS = 1.0
"""Before the second try; twice as long before each further one."""
LONGEST_WAIT_SECONDS = 60.0
"""The most that a server may ask to be left alone for."""
TIMEOUT_SECONDS = 10.0
"""How long a server may be silent."""
FLUSH_SECONDS = 5.0
"""How long the end of a run waits for what is still to be sent."""
REPORTS = 100
"""Reports of steps in a run, where no interval is set."""


class Sender:
    """Posts messages to one address, in order, from a thread of its own.

    Args:
        hook: the address and what it takes.
        run: what the run is called.
    """

    def __init__(self, hook: Webhook, run: str) -> None:
        self._hook, self._run = hook, run
        self._waiting: deque[tuple[float, Message]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closing = threading.Event()
        self._deadline = 0.0
        self._tries = TRIES  # one while the server is known not to answer
        self._told = False
        self._thread = threading.Thread(target=self._work, name="tunerkit-webhook", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Queue a message; never waits."""
        if message.level < self._hook.level:
            return
        with self._changed:
            if self._closing.is_set():
                return
            if message.in_memory:  # pictures of an unfinished video: only the newest one is worth its place
                self._waiting = deque(entry for entry in self._waiting if not entry[1].in_memory)
            self._waiting.append((time.time(), message))
            if len(self._waiting) > WAITING:
                old = next((entry for entry in self._waiting if entry[1].droppable), self._waiting[0])
                self._waiting.remove(old)
            self._changed.notify_all()

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send what waits, but at most so many seconds; what is left then is lost."""
        self._deadline = time.monotonic() + seconds
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._busy), seconds)
            self._waiting.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
                if not self._waiting:
                    return
                entry = self._waiting.popleft()
                self._busy = True
            try:
                self._deliver(*entry)
            except Exception as error:  # a thread that ends without a word would look like a server that does
                self._give_up(f"{type(error).__name__}: {error}")

    def _deliver(self, at: float, message: Message) -> None:
        body = json.dumps(self._body(at, message)).encode()
        reason, wait = "", 0.0
        for attempt in range(self._tries):
            if attempt and not self._rest(wait):
                break
            reason, wait = self._post(body, BACK_OFF_SECONDS * 2**attempt)
            if not reason:
                self._tries, self._told = TRIES, False
                return
            if wait is None:
                break
        self._tries = 1
        self._give_up(reason)

    def _body(self, at: float, message: Message) -> dict[str, Any]:
        if self._hook.kind == "discord":
            return message.discord(self._run, self._hook.prefix)
        body = message.raw(self._run, at, media=self._hook.media)
        return {**body, "text": f"{self._hook.prefix} {body['text']}"} if self._hook.prefix else body

    def _post(self, body: bytes, back_off: float) -> tuple[str, float | None]:
        """Post once: why it failed (empty if it did not), and seconds until it may be worth another try."""
        headers = {"Content-Type": "application/json", "User-Agent": f"tunerkit/{__version__}"}
        request = urllib.request.Request(self._hook.url, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            passing = error.code >= 500 or error.code in (408, 425, 429)
            asked = _seconds(error.headers.get("Retry-After"))
            wait = min(LONGEST_WAIT_SECONDS, max(back_off, asked))
            return f"it answers with status {error.code}", wait if passing else None
        except (OSError, http.client.HTTPException, ValueError) as error:  # not reached, too slow, cut off
            return str(getattr(error, "reason", error)) or type(error).__name__, back_off
        return "", None

    def _rest(self, seconds: float) -> bool:
        """Wait before another try; whether there is still time for one."""
        if not self._closing.wait(seconds):
            return True
        left = self._deadline - time.monotonic()
        if left > BACK_OFF_SECONDS:
            time.sleep(BACK_OFF_SECONDS)
        return left > BACK_OFF_SECONDS

    def _give_up(self, reason: str) -> None:
        """Say once that messages are lost; again only after some have arrived."""
        if not self._told:
            self._told = True  # first: the warning is a message itself
            host = urlsplit(self._hook.url).hostname  # the rest of the address is a secret
            logger.warning("the webhook at %s cannot be reached (%s); training goes on", host, reason)


def _seconds(text: str | None) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return float(text or 0.0)
    return 0.0


class WebhookListener(Listener):
    """Sends the messages of a run to one address.

    Args:
        hook: the address and what it takes.
        config: resolved settings.
        sender: what posts them.
    """

    name = "webhook_config"

    def __init__(self, hook: Webhook, config: TrainConfig, sender: Callable[[Webhook, str], Sender] = Sender) -> None:
        self._folder, self._interval = config.output_path, config.webhook_reporting_interval
        # A channel that people read is told of steps only where that is asked for.
        self._every_step = hook.kind == "raw"
        self._stage = ""
        self._sender = sender(hook, run_name(config))

    def step(self, row: dict[str, Any], total: int) -> None:
        every = self._interval
        if every is None:
            every = max(1, total // REPORTS) if self._every_step else 0
        if every and (row["step"] % every == 0 or row["step"] == total):
            self._sender.put(of_step(row, total))

    def event(self, row: dict[str, Any]) -> None:
        message = of_event(row, self._folder)
        if message is not None:
            self._sender.put(message)

    def activity(self, words: str) -> None:
        message = of_activity(words)
        if message.text != self._stage:
            self._stage = message.text
            self._sender.put(message)

    def preview(self, row: dict[str, Any], picture: bytes, media_type: str) -> None:
        if self._every_step:
            self._sender.put(of_preview(row, picture, media_type))

    def close(self) -> None:
        self._sender.close()


def webhook_listeners(config: TrainConfig) -> list[Listener]:
    """One for each address of `webhook_config`."""
    return [WebhookListener(hook, config) for hook in webhooks_of(config)]
