"""The loss curves as a picture.

Drawn with matplotlib's Figure and the Agg canvas only: pyplot keeps figures in a global list and must not be used from
widget callbacks, which may run in another thread.
"""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

import numpy as np

from tunerkit_widgets.history import Curve, TrainingHistory, smoothed
from tunerkit_widgets.texts import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1500
"""Points of a drawn curve at most; more cannot be told apart in the picture."""
SIZE_INCHES = (7.2, 3.0)
PARTS_INCHES = 2.0
"""Height of the curves of the loss's parts below, where it has more than one."""
DPI = 90
COLOURS = 64
RAW, SMOOTH, EVALUATION = "#9ecae1", "#1f6fb4", "#d95f02"
PARTS = (("#a1d99b", "#238b45"), ("#d4b9da", "#88419d"), ("#cccccc", "#555555"))
"""(raw, smoothed) of each part."""


def loss_png(history: TrainingHistory) -> bytes:
    """Both losses over the steps, as PNG bytes: training loss raw and smoothed, evaluation loss with markers.

    A loss of several parts has theirs below, on an axis of their own: a part that falls can hide one that does not.

    Args:
        history: what to draw; without a point, the axes are empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = SIZE_INCHES
    if history.parts:
        figure = Figure(figsize=(width, height + PARTS_INCHES), dpi=DPI, layout="constrained")
        axes, below = figure.subplots(2, sharex=True, height_ratios=(height, PARTS_INCHES))
        _draw_parts(below, history)
    else:
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        axes = below = figure.add_subplot()
    _draw_losses(axes, history)
    below.set_xlabel(text("plot.step"))
    below.set_xlim(left=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return small_png(np.asarray(canvas.buffer_rgba()))


def _draw_losses(axes: Axes, history: TrainingHistory) -> None:
    if history.losses:
        axes.plot(*_columns(thinned(history.losses)), color=RAW, linewidth=0.9, label=text("plot.raw"))
        curve = thinned(smoothed(history.losses))
        axes.plot(*_columns(curve), color=SMOOTH, linewidth=1.8, label=text("plot.smooth"))
    if history.evaluations:
        steps, losses = _columns(history.evaluations)
        axes.plot(
            steps, losses, color=EVALUATION, marker="o", markersize=3.5, linewidth=1.5, label=text("plot.evaluation")
        )
    _frame(axes, text("plot.loss"), legend=bool(history.losses or history.evaluations))


def _draw_parts(axes: Axes, history: TrainingHistory) -> None:
    for (name, curve), (raw, smooth) in zip(history.parts.items(), itertools.cycle(PARTS), strict=False):
        axes.plot(*_columns(thinned(curve)), color=raw, linewidth=0.9)
        axes.plot(*_columns(thinned(smoothed(curve))), color=smooth, linewidth=1.8, label=name)
    _frame(axes, text("plot.parts"), legend=True)


def _frame(axes: Axes, label: str, *, legend: bool) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=8, loc="upper right")


def small_png(pixels: np.ndarray, colours: int = COLOURS) -> bytes:
    """RGBA pixels [H, W, 4] as PNG with a palette: a fifth of the size, and lines need no more colours."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def thinned(curve: Curve, points: int = POINTS) -> list[tuple[int, float]]:
    """Every n-th point of a long curve, and its last one."""
    every = -(-len(curve) // points)
    if every <= 1:
        return list(curve)
    return [*curve[: len(curve) - 1 : every], curve[-1]]


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [loss for _, loss in curve]
