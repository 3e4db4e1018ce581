"""Who is told about a run: trackers, webhooks and the hub. What their settings mean, and what is wrong with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

TRACKERS = ("wandb", "tensorboard", "trackio")
"""Values of `report_to`; each is the name of its package, and of the extra that installs it."""
QUIET: dict[str, Any] = {
    "report_to": "none",
    "webhook_config": None,
    "push_to_hub": False,
    "push_checkpoints_to_hub": False,
}
"""Settings under which nobody is told."""
LEVELS = {"critical": 3, "error": 3, "warning": 2, "info": 1, "debug": 0}
"""`log_level` of a webhook -> the least important messages that it is sent: 3 = failures only, 0 = everything."""
_URL_KEYS = ("url", "webhook_url", "callback_url")
_KINDS = ("raw", "discord")
_DISCORD_HOSTS = ("discord.com", "discordapp.com")


@dataclass(frozen=True)
class Webhook:
    """One address that is sent messages.

    Attributes:
        url: where they are posted to.
        kind: "raw": the message itself as JSON; "discord": text for a channel.
        level: least importance of a message, as in `LEVELS`.
        prefix: stands in front of every text.
        media: whether small videos and pictures are sent along.
    """

    url: str
    kind: str
    level: int = LEVELS["info"]
    prefix: str = ""
    media: bool = True


# Trackers ------------------------------------------------------------------------------------------------------


def trackers_of(config: TrainConfig) -> list[str]:
    """The trackers that `report_to` names; "all" stands for those that are installed."""
    asked = _asked(config)
    if "all" in asked:
        return [name for name in TRACKERS if name in asked or find_spec(name) is not None]
    return [name for name in TRACKERS if name in asked]


def _asked(config: TrainConfig) -> list[str]:
    given = config.report_to
    words = given.split(",") if isinstance(given, str) else [str(word) for word in given]
    names = (word.strip().casefold() for word in words)
    return [name for name in names if name not in ("", "none", "no")]


def package_problems(config: TrainConfig) -> Iterator[Problem]:
    """Trackers whose package is missing. Settings may name them on one machine and be used on another."""
    for name in trackers_of(config):
        if find_spec(name) is None:
            message = f"needs the package {name}, which is not installed"
            yield Problem("report_to", config.report_to, message, f"pip install 'tunerkit[{name}]', or write none")


def _tracker_problems(config: TrainConfig) -> Iterator[Problem]:
    unknown = [name for name in _asked(config) if name not in (*TRACKERS, "all")]
    if unknown:
        message = f"{', '.join(unknown)} is no tracker that runs can be reported to"
        choices = ", ".join(("none", *TRACKERS, "all"))
        yield Problem("report_to", config.report_to, message, f"write one of {choices}, or a list of them")


# Webhooks ------------------------------------------------------------------------------------------------------


def webhooks_of(config: TrainConfig) -> list[Webhook]:
    """The addresses of `webhook_config`, which is right: `reporting_problems` finds nothing."""
    return [_webhook(entry) for _, entry in _webhook_entries(config)]


def _webhook_entries(config: TrainConfig) -> list[tuple[str, Any]]:
    given = config.webhook_config
    if isinstance(given, list):
        return [(f"webhook_config[{index}]", entry) for index, entry in enumerate(given)]
    return [("webhook_config", given)] if given else []


def _webhook_problems(config: TrainConfig) -> Iterator[Problem]:
    for key, entry in _webhook_entries(config):
        try:
            _webhook(entry)
        except _WrongWebhookError as wrong:
            yield Problem(key, wrong.value, wrong.message, wrong.fix)


class _WrongWebhookError(Exception):
    def __init__(self, value: Any, message: str, fix: str) -> None:
        self.value, self.message, self.fix = value, message, fix
        super().__init__(message)


def _webhook(entry: Any) -> Webhook:
    """One entry as it is meant.

    Raises:
        _WrongWebhookError: saying what is wrong.
    """
    facts = {"url": entry} if isinstance(entry, str) else entry
    if not isinstance(facts, Mapping):
        raise _WrongWebhookError(entry, "is neither an address nor an object", 'write {"url": "https://..."}')
    known = (*_URL_KEYS, "webhook_type", "log_level", "message_prefix", "send_video")
    if unknown := [str(key) for key in facts if key not in known]:
        raise _WrongWebhookError(None, f"has no setting {unknown[0]}", f"use {', '.join(known)}")
    url = _address(facts)
    kind = str(facts.get("webhook_type") or ("discord" if _is_discord(url) else "raw"))
    if kind not in _KINDS:
        raise _WrongWebhookError(kind, "is no webhook_type", f"write {' or '.join(_KINDS)}")
    level = str(facts.get("log_level") or "info").casefold()
    if level not in LEVELS:
        raise _WrongWebhookError(level, "is no log_level", f"write one of {', '.join(LEVELS)}")
    media = facts.get("send_video", True)
    if not isinstance(media, bool):
        raise _WrongWebhookError(media, "send_video is not true or false", "write true or false")
    return Webhook(url, kind, LEVELS[level], str(facts.get("message_prefix") or ""), media)


def _address(facts: Mapping[str, Any]) -> str:
    url = next((facts[key] for key in _URL_KEYS if facts.get(key)), None)
    if url is None:
        raise _WrongWebhookError(None, "has no address", 'add "url": "https://..."')
    try:
        parts = urlsplit(str(url).strip())
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:  # a port that is no number, or brackets that do not close
        right = False
    if not right:
        fix = "write a whole address, such as https://example.org/hook, or an object with one as its url"
        raise _WrongWebhookError(url, "is no address of the web", fix)
    return str(url).strip()


def _is_discord(url: str) -> bool:
    parts = urlsplit(url)
    return parts.hostname in _DISCORD_HOSTS and parts.path.startswith("/api/webhooks/")


# Hub -----------------------------------------------------------------------------------------------------------


def pushes(config: TrainConfig) -> bool:
    """Whether anything is uploaded to the hub."""
    return config.push_to_hub or config.push_checkpoints_to_hub


def _hub_problems(config: TrainConfig) -> Iterator[Problem]:
    name = config.hub_model_id
    if not name:
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        message = "is no name of a repository: letters, digits, '-', '_' and '.', at most 96"
        yield Problem("hub_model_id", name, message, "write owner/name, or only name for your own account")


def endpoint_notes() -> Iterator[Note]:
    """A mirror that was named too late: huggingface_hub reads HF_ENDPOINT once, when it is imported."""
    wanted = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    constants = sys.modules.get("huggingface_hub.constants")
    if wanted and constants is not None and wanted != constants.ENDPOINT:
        yield Note(
            "HF_ENDPOINT",
            f"is {wanted}, but was set after huggingface_hub had been imported, which goes on using "
            f"{constants.ENDPOINT} in this process; trainings in processes of their own (tk.start) use {wanted}. Fix: "
            "set it before Python starts, or in a notebook's first cell before any import, and restart the kernel",
        )


# Together ------------------------------------------------------------------------------------------------------


def reporting_problems(config: TrainConfig) -> Iterator[Problem]:
    """What is wrong with the settings of trackers, webhooks and the hub, on any machine."""
    yield from _tracker_problems(config)
    yield from _webhook_problems(config)
    yield from _hub_problems(config)


def reporting_notes(config: TrainConfig) -> Iterator[Note]:
    """Settings without an effect, and a mirror of the hub that is not used."""
    asked = _asked(config)
    if "all" in asked and not trackers_of(config):
        yield Note("report_to", f"all: none of {', '.join(TRACKERS)} is installed, so nothing is reported")
    if not asked:
        for key in ("tracker_project_name", "tracker_run_name"):
            if getattr(config, key) and not (key == "tracker_project_name" and pushes(config)):
                yield Note(key, "has no effect without report_to")
    if config.webhook_reporting_interval is not None and not _webhook_entries(config):
        yield Note("webhook_reporting_interval", "has no effect without webhook_config")
    if not pushes(config):
        for key in ("push_to_hub_background", "model_card_private", "model_card_safe_for_work"):
            if getattr(config, key):
                yield Note(key, "has no effect without push_to_hub; `push` on the command line heeds it")
    yield from endpoint_notes()
