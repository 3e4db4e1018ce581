"""Webhooks: what is posted, that nothing is lost on a server that fails for a while, and that none holds a run up."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tunerkit as tk
from tunerkit.config.reporting_rules import Webhook, webhooks_of
from tunerkit.reporting import messages, webhook
from tunerkit.reporting.messages import Message
from tunerkit.reporting.webhook import Sender, WebhookListener
from tunerkit.training.run_folder import read_metrics

MakeConfig = Callable[..., tk.TrainConfig]
ROW = {
    "step": 4, "loss": 0.25, "parts": {"video": 0.25}, "lr": 1e-4, "grad_norm": None, "seconds": 0.5, "epoch": 0,
    "samples": ["secret-name.mp4"],
}  # fmt: skip


class Server:
    """Takes posts; `answers` are the statuses of the next ones, then 200. `hangs` lets them wait."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.go_on = threading.Event()
        self.go_on.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked += 1
                outer.go_on.wait(30)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.answers.pop(0) if outer.answers else 200
                if status == 200:
                    outer.bodies.append({**json.loads(body), "content_type": self.headers["Content-Type"]})
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/secret"

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BACK_OFF_SECONDS", 0.01)


def status(step: int) -> Message:
    return Message("training.status", messages.INFO, f"step {step}", {"step": step})


def stage(name: str) -> Message:
    return Message("lifecycle.stage", messages.INFO, name, {"stage": name})


def test_a_run_is_told_from_its_beginning_to_its_end(server: Server, make_config: MakeConfig) -> None:
    config = make_config(
        webhook_config={"url": server.url, "message_prefix": "lab:"}, webhook_reporting_interval=2, max_train_steps=4,
        checkpoint_step_interval=2, tracker_run_name="fox", validation_disable=False, validation_step_interval=4,
        validation_resolution="64x64", validation_num_video_frames=5, validation_num_inference_steps=1,
        validation_prompt="a fox", user_prompt_library=None, disable_benchmark=True,
    )  # fmt: skip
    trainer = tk.Trainer(config).prepare()
    losses = {result.step: result.loss for result in trainer.steps(evaluate=True)}
    trainer.close()

    told = server.bodies
    assert {body["run"] for body in told} == {"fox"}
    assert {body["content_type"] for body in told} == {"application/json"}
    assert all(body["text"].startswith("lab: ") for body in told)
    stages = [body["stage"] for body in told if body["type"] == "lifecycle.stage"]
    assert stages[0] == "looking at clips"
    assert stages[-1] == "done"
    assert "loading the model" in stages
    assert not any("of" in name.split() and any(letter.isdigit() for letter in name) for name in stages), stages
    reports = [body for body in told if body["type"] == "training.status"]
    assert [(body["step"], body["total_steps"]) for body in reports] == [(2, 4), (4, 4)]
    assert [body["loss"] for body in reports] == [losses[2], losses[4]]
    assert not any("samples" in body for body in told)
    assert [body["path"] for body in told if body["type"] == "training.checkpoint"] == ["checkpoint-2", "checkpoint-4"]
    assert [body["step"] for body in told if body["type"] == "training.evaluation"]
    videos = [body for body in told if body["type"] == "validation.video"]
    assert [body["step"] for body in videos] == [4]
    kind, _, data = videos[0]["data"].partition(",")
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(data) == (config.output_path / videos[0]["path"]).read_bytes()


def test_a_failure_is_told_with_its_fix(server: Server, make_config: MakeConfig) -> None:
    config = make_config(webhook_config=server.url)
    for clip in Path(str(config.datasets[0].instance_data_dir)).rglob("*.mp4"):
        clip.unlink()
    with pytest.raises(tk.TunerkitError) as raised:
        tk.Trainer(config).prepare()
    assert server.bodies[-1]["type"] == "error"
    assert server.bodies[-1]["error"] == str(raised.value)


def test_a_server_that_hangs_does_not_hold_up_the_training(
    server: Server, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sender.close, "__defaults__", (0.3,))
    server.go_on.clear()
    config = make_config(webhook_config=server.url, webhook_reporting_interval=1, max_train_steps=3)
    trainer = tk.Trainer(config).prepare()
    results = list(trainer.steps())
    started = time.monotonic()
    trainer.close()
    assert 0.2 < time.monotonic() - started < 3
    assert server.asked == 1  # it has waited since the first message
    assert not server.bodies
    assert [row["loss"] for row in read_metrics(config.output_path / "metrics.jsonl")] == [r.loss for r in results]
    assert [result.step for result in results] == [1, 2, 3]


def test_waiting_messages_are_few_and_the_least_important_go_first(server: Server) -> None:
    server.go_on.clear()
    sender = Sender(Webhook(server.url, "raw"), "run")
    sender.put(stage("first"))
    while server.asked == 0:
        time.sleep(0.01)
    sender.put(stage("second"))
    started = time.monotonic()
    for step in range(5000):
        sender.put(status(step))
    assert time.monotonic() - started < 2
    server.go_on.set()
    sender.close(20)
    stages = [body["stage"] for body in server.bodies if "stage" in body]
    steps = [body["step"] for body in server.bodies if "step" in body]
    assert stages == ["first", "second"]
    assert steps == list(range(5000 - webhook.WAITING + 1, 5000))


def test_what_fails_for_a_while_arrives_in_order(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answers = [503, 500, 429]
    sender = Sender(Webhook(server.url, "raw"), "run")
    for name in ("a", "b", "c"):
        sender.put(stage(name))
    sender.close(20)
    assert [body["stage"] for body in server.bodies] == ["a", "b", "c"]
    assert server.asked == 6
    assert not caplog.records


def test_a_server_may_ask_for_time(server: Server) -> None:
    server.answers, server.headers = [429], {"Retry-After": "0.4"}
    sender = Sender(Webhook(server.url, "raw"), "run")
    started = time.monotonic()
    sender.put(stage("a"))
    while not server.bodies and time.monotonic() - started < 10:
        time.sleep(0.01)
    assert time.monotonic() - started > 0.35
    sender.close(1)


def test_what_is_refused_is_given_up_at_once_and_said_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answers = [404, 404, 200]
    sender = Sender(Webhook(server.url, "raw"), "run")
    for name in ("a", "b", "c"):
        sender.put(stage(name))
    sender.close(20)
    assert [body["stage"] for body in server.bodies] == ["c"]
    assert server.asked == 3
    assert [record.message for record in caplog.records] == [
        "the webhook at 127.0.0.1 cannot be reached (it answers with status 404); training goes on"
    ]


def test_nobody_at_the_address(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(Webhook("http://127.0.0.1:9/secret", "raw"), "run")
    for name in ("a", "b"):
        sender.put(stage(name))
    sender.close(20)
    assert len(caplog.records) == 1
    assert "refused" in caplog.text
    assert "secret" not in caplog.text


def test_importance_and_media(server: Server, make_config: MakeConfig, tmp_path: Path) -> None:
    quiet = Sender(Webhook(server.url, "raw", level=messages.WARNING), "run")
    quiet.put(status(1))
    quiet.put(Message("notification", messages.WARNING, "disk is nearly full", {"step": 1}))
    quiet.put(Message("error", messages.FAILURE, "failed", {"step": 1}))
    quiet.close(20)
    assert [body["type"] for body in server.bodies] == ["notification", "error"]

    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(b"video")
    large.write_bytes(bytes(messages.MEDIA_BYTES + 1))
    raw = [
        Message("validation.video", messages.INFO, "x", {}, media).raw("run", 1.0, media=wanted)
        for media, wanted in (
            ((small, "video/mp4"), True), ((small, "video/mp4"), False), ((large, "video/mp4"), True),
            ((tmp_path / "gone.mp4", "video/mp4"), True), ((b"GIF89a", "image/gif"), True),
        )
    ]  # fmt: skip
    assert [body.get("data") for body in raw] == [
        "data:video/mp4;base64,dmlkZW8=", None, None, None, "data:image/gif;base64,R0lGODlh"
    ]  # fmt: skip

    server.bodies.clear()
    listener = WebhookListener(Webhook(server.url, "raw"), make_config(webhook_config=server.url))
    server.go_on.clear()
    asked = server.asked
    listener.preview({"step": 6}, b"GIF89", "image/gif")
    while server.asked == asked:
        time.sleep(0.01)
    for step in (6, 7):  # of those that wait only the newest is sent
        listener.preview({"step": step, "prompt": "a fox"}, b"GIF89a", "image/gif")
    server.go_on.set()
    listener.close()
    assert len(server.bodies) == 2
    server.bodies.pop(0)
    assert (server.bodies[0]["type"], server.bodies[0]["step"]) == ("validation.image", 7)
    assert server.bodies[0]["data"] == "data:image/gif;base64,R0lGODlh"


def test_discord_is_sent_text(server: Server, make_config: MakeConfig) -> None:
    config = make_config(
        webhook_config=[{"webhook_url": server.url, "webhook_type": "discord", "message_prefix": "<@1>"}],
        tracker_run_name="fox",
    )
    (hook,) = webhooks_of(config)
    listener = WebhookListener(hook, config)
    listener.step(ROW, 100)  # a channel is told of steps only where that is asked for
    listener.event({"kind": "checkpoint", "step": 4, "text": "saved checkpoint-4", "path": "checkpoint-4"})
    listener.event({"kind": "warning", "step": 4, "text": "x" * 3000})
    listener.close()
    first, second = server.bodies
    assert first["content"] == "<@1> **fox**: step 4: saved checkpoint-4"
    assert first["allowed_mentions"] == {"parse": []}
    assert len(second["content"]) == 2000


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ("config/webhook.json", "webhook_config", "no address of the web"),
        ("ftp://example.org", "webhook_config", "no address of the web"),
        ("https://[::1", "webhook_config", "no address of the web"),
        ({"webhook_type": "discord"}, "webhook_config", "has no address"),
        ([{"url": "https://a.org"}, {"url": "https://a.org", "colour": 1}], "webhook_config[1]", "no setting colour"),
        ([3], "webhook_config[0]", "neither an address nor an object"),
        ({"url": "https://a.org", "webhook_type": "slack"}, "webhook_config", "raw or discord"),
        ({"url": "https://a.org", "log_level": "loud"}, "webhook_config", "is no log_level"),
        ({"url": "https://a.org", "send_video": "no"}, "webhook_config", "true or false"),
    ],
)
def test_wrong_settings_are_told(given: Any, key: str, words: str) -> None:
    with pytest.raises(tk.ConfigError) as raised:
        tk.TrainConfig(webhook_config=given)
    (problem,) = raised.value.problems
    assert problem.key == key
    assert words in str(problem)


def test_settings_of_other_trainers_are_understood() -> None:
    def hooks(given: Any) -> list[Webhook]:
        return webhooks_of(tk.TrainConfig(webhook_config=given))

    assert hooks(None) == []
    assert hooks("https://discord.com/api/webhooks/1/x") == [Webhook("https://discord.com/api/webhooks/1/x", "discord")]
    assert hooks('{"callback_url": "http://localhost:8001/x", "log_level": "ERROR"}') == [
        Webhook("http://localhost:8001/x", "raw", level=messages.FAILURE)
    ]
    assert len(hooks(["https://a.org", {"url": "https://b.org", "send_video": False}])) == 2
    notes = {note.key for note in tk.TrainConfig(webhook_reporting_interval=5).notes}
    assert notes == {"webhook_reporting_interval"}


def test_reports_of_steps_are_about_a_hundred(server: Server, make_config: MakeConfig) -> None:
    sent: list[Message] = []

    class Kept:
        def put(self, message: Message) -> None:
            sent.append(message)

    def reported(interval: int | None) -> list[int]:
        sent.clear()
        config = make_config(webhook_config=server.url, webhook_reporting_interval=interval)
        listener = WebhookListener(Webhook(server.url, "raw"), config, lambda *_: Kept())  # pyright: ignore[reportArgumentType]
        for step in range(1, 1001):
            listener.step({**ROW, "step": step}, 1000)
        return [message.facts["step"] for message in sent]

    assert reported(None) == list(range(10, 1001, 10))
    assert reported(400) == [400, 800, 1000]
    assert reported(0) == []
