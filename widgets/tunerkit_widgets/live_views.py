"""Where a running training is shown: widgets that change, or plain lines in a file that is kept."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import tunerkit as tk
from tunerkit_widgets.guard import QUIET_COLOUR, guarded
from tunerkit_widgets.history import TrainingHistory
from tunerkit_widgets.loss_plot import DPI, SIZE_INCHES, loss_png
from tunerkit_widgets.surroundings import show, show_png, show_widget
from tunerkit_widgets.texts import duration, text
from tunerkit_widgets.throttle import Throttle
from tunerkit_widgets.videos import show_videos, videos_html

PLAIN_LINES = 10
PLAIN_SECONDS = 120.0
"""Plain lines of a run at least, and the longest silence between two."""


@dataclass(frozen=True)
class Progress:
    """Where the training is. `lr` and `speed` (steps per second) are None before the first step.

    `parts` holds the last step's terms of the loss, where there is more than one.
    """

    step: int
    total: int
    loss: float | None = None
    lr: float | None = None
    speed: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        parts = [text("live.step", step=self.step, total=self.total)]
        if self.loss is not None:
            parts.append(self._loss(f"{self.loss:.4f}"))
        if self.lr is not None:
            parts.append(text("live.lr", lr=f"{self.lr:.2e}"))
        if self.speed:
            fast = self.speed >= 1
            value = f"{self.speed if fast else 1 / self.speed:.2f}"
            parts.append(text("live.speed" if fast else "live.slow", value=value))
            parts.append(text("live.left", left=duration((self.total - self.step) / self.speed)))
        return " · ".join(parts)

    def _loss(self, loss: str) -> str:
        if not self.parts:
            return text("live.loss", loss=loss)
        parts = [text("live.part", name=name, loss=f"{value:.4f}") for name, value in self.parts.items()]
        return text("live.parts", loss=loss, parts=", ".join(parts))


class View(Protocol):
    """What `LiveTraining` tells its view."""

    def open(self, progress: Progress, history: TrainingHistory) -> None: ...
    def say(self, message: str) -> None: ...
    def update(self, progress: Progress, history: TrainingHistory) -> None: ...
    def videos(self, videos: Sequence[tk.Rendering]) -> None: ...
    def close(
        self, message: str, progress: Progress, history: TrainingHistory, videos: Sequence[tk.Rendering]
    ) -> None: ...


class PlainView:
    """Some lines while it runs; at the end one picture and the last videos."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[int, float] | None = None

    def open(self, progress: Progress, history: TrainingHistory) -> None:
        del history
        print(progress.line())

    def say(self, message: str) -> None:
        if message:
            print(message)

    def update(self, progress: Progress, history: TrainingHistory) -> None:
        del history
        now = self._clock()
        part = PLAIN_LINES * progress.step // max(1, progress.total)
        if self._last is not None and part == self._last[0] and now - self._last[1] < PLAIN_SECONDS:
            return
        self._last = (part, now)
        print(progress.line())

    def videos(self, videos: Sequence[tk.Rendering]) -> None:
        print(text("live.rendered", count=len(videos), folder=videos[0].path.parent))

    def close(self, message: str, progress: Progress, history: TrainingHistory, videos: Sequence[tk.Rendering]) -> None:
        del progress  # the last line has said it
        print(message)
        show_png(loss_png(history))
        if videos:
            show_videos(videos)


class WidgetView:
    """Bar, state line, plot and videos that change in place; frozen to a picture and players at the end.

    Args:
        stop: called when the Stop button is pressed.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        import ipywidgets as widgets

        self.bar = widgets.IntProgress(layout=widgets.Layout(width="320px"))
        self.button = widgets.Button(description=text("live.stop"), tooltip=text("live.stop_help"), icon="stop")
        self.state = widgets.HTML()
        self.message = widgets.HTML()
        width = f"{SIZE_INCHES[0] * DPI:.0f}px"
        self.plot = widgets.Image(format="png", layout=widgets.Layout(width=width, max_width="100%"))
        self.gallery = widgets.HTML()
        row = widgets.HBox([self.bar, self.button])
        self._row = (row, self.bar, self.button)
        self.box = widgets.VBox([row, self.state, self.message, self.plot, self.gallery])
        self._stop = stop
        self.button.on_click(guarded(self._pressed, self._fail))
        self._show_state = Throttle(guarded(self._draw_state, self._fail))
        self._show_plot = Throttle(guarded(self._draw_plot, self._fail))
        self._handle: Any = None
        self._error = ""

    def open(self, progress: Progress, history: TrainingHistory) -> None:
        self._handle = show_widget(self.box, progress.line())
        self.update(progress, history)

    def say(self, message: str) -> None:
        self.message.value = f"<span style='color:{QUIET_COLOUR}'>{html.escape(message)}</span>"

    def update(self, progress: Progress, history: TrainingHistory) -> None:
        self._show_state(progress)
        self._show_plot(history)

    def videos(self, videos: Sequence[tk.Rendering]) -> None:
        guarded(self._draw_videos, self._fail)(videos)

    def close(self, message: str, progress: Progress, history: TrainingHistory, videos: Sequence[tk.Rendering]) -> None:
        """Put a picture and players in the place of the widgets, which a saved notebook would lose."""
        from IPython.display import HTML

        self._show_state.flush()
        lines = f"<p>{html.escape(progress.line())}<br>{html.escape(message)}</p>{self._error}"
        if self._handle is None:
            show(lines, message)
        else:
            self._handle.update(HTML(lines))
        for widget in (self.box, *self._row, self.state, self.message, self.plot, self.gallery):
            widget.close()
        show_png(loss_png(history))
        if videos:
            show_videos(videos)

    def _pressed(self, _: Any) -> None:
        self.button.disabled = True
        self.say(text("live.stopping"))
        self._stop()

    def _draw_state(self, progress: Progress) -> None:
        self.bar.max, self.bar.value = max(1, progress.total), progress.step
        self.state.value = html.escape(progress.line())

    def _draw_plot(self, history: TrainingHistory) -> None:
        self.plot.value = loss_png(history)

    def _draw_videos(self, videos: Sequence[tk.Rendering]) -> None:
        self.gallery.value = videos_html(videos)

    def _fail(self, message: str) -> None:
        self._error = message
        self.message.value = message
