"""A run that is told what to be, and what a page would send: for tests of widgets without kernel and browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import tunerkit as tk
from tunerkit_widgets.dashboard_run import ENDED

GIB = 2**30
RUNNING = tk.RunStatus(
    state="running",
    total_steps=100,
    pid=4711,
    alive=True,
    seconds_per_step=0.5,
    seconds_left=50.0,
    memory_used=6 * GIB,
    memory_peak=7 * GIB,
    memory_total=24 * GIB,
    device="NVIDIA L4",
    disk_free=120 * GIB,
    started=1000.0,
    heartbeat=1100.0,
)


@dataclass
class FakeRun:
    """A run that is where it is put; `script` moves it each time that it is looked at while it is waited for."""

    output_dir: Path
    state: tk.RunStatus = RUNNING
    config: Any = field(default_factory=lambda: SimpleNamespace(validation_disable=False))
    rows: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    reported: list[dict[str, Any]] = field(default_factory=list)
    rendered: list[tk.Rendering] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    script: Iterator[Any] = field(default_factory=lambda: iter(()))
    rows_read: int = 0
    videos_read: int = 0

    @property
    def status(self) -> tk.RunStatus:
        return self.state

    def be(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def train(self, count: int, *, loss: Callable[[int], float] = lambda step: 1 / step, **more: Any) -> None:
        first = len(self.rows) + 1
        self.rows += [{"step": step, "loss": loss(step), "lr": 1e-4, **more} for step in range(first, first + count)]
        self.be(step=len(self.rows))

    def report(self, kind: str, step: int = 0, words: str = "", at: float = 2000.0) -> None:
        number = len(self.reported) + 1
        self.reported.append({"number": number, "time": at, "kind": kind, "step": step, "text": words})

    def pause(self) -> None:
        self.sent.append("pause")

    def resume(self) -> None:
        self.sent.append("resume")

    def stop(self) -> None:
        self.sent.append("stop")

    def save_now(self) -> None:
        self.sent.append("save_now")

    def validate_now(self) -> None:
        self.sent.append("validate_now")

    async def finished(
        self, on_change: Callable[[tk.RunStatus], object] | None = None, every: float = 0.25
    ) -> tk.RunStatus:
        while self.state.state not in ENDED:
            next(self.script)
            if on_change:
                on_change(self.state)
            await asyncio.sleep(every)
        if self.state.state in ("failed", "died"):
            raise tk.RunFailedError(self.state, self.output_dir)
        return self.state

    def metrics(self, after: int = 0) -> list[dict[str, Any]]:
        found = [row for row in self.rows if row["step"] > after]
        self.rows_read += len(found)
        return found

    def evaluations(self) -> list[dict[str, Any]]:
        return self.points

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        return [event for event in self.reported if event["number"] > after]

    def videos(self, step: int | None = None) -> list[tk.Rendering]:
        self.videos_read += 1
        return [video for video in self.rendered if step is None or video.step == step]

    def log(self, lines: int = 20) -> list[str]:
        return self.lines[-lines:]


def video(folder: Path, step: int, colour: int = 120) -> tk.Rendering:
    """A little clip, as a validation round leaves it."""
    import av

    path = folder / "validation" / f"step-{step}" / "cat-64x48-7.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(4):
            picture = np.full((48, 64, 3), colour + 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return tk.Rendering(path, "a cat", "cat", 7, step, 4, 8.0, (64, 48))


def click(button: Any) -> None:
    """What the page sends when somebody clicks a button."""
    data = {"method": "custom", "content": {"event": "click"}}
    button._handle_msg({"content": {"data": data}, "buffers": []})
