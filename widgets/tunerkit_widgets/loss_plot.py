"""The loss curves of a run as a picture that suits light and dark pages.

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

POINTS = 2000
"""Points of a drawn raw curve at most: three for each pixel across."""
SMOOTH_POINTS = 1500
SIZE_INCHES = (7.2, 3.0)
PARTS_INCHES = 2.0
"""Height of the curves of the loss's parts below, where it has more than one."""
DPI = 90
COLOURS = 128
RAW, SMOOTH, EVALUATION = "#9ecae1", "#1f6fb4", "#d95f02"
PARTS = (
    ("#a1d99b", "#238b45"), ("#d4b9da", "#88419d"), ("#cccccc", "#555555"), ("#fdd0a2", "#b8860b"),
    ("#9edae5", "#17a2b8"), ("#f4a6a6", "#c0392b"), ("#c7c7ff", "#5b5bd6"), ("#e0c7b0", "#8c564b"),
)  # fmt: skip
"""(raw, smoothed) of each part; picture and sound with an alignment and a rollout have eight."""
INK = "#858585"
"""Letters and axes: read as well on white as on black, for the picture has no background of its own."""
RAW_ALPHA = 0.75


def loss_png(history: TrainingHistory) -> bytes:
    """Training loss raw and smoothed and evaluation loss over the steps, as PNG bytes with a clear background.

    A loss of several parts has theirs below, on an axis of their own: a part that falls can hide one that does not.

    Args:
        history: what to draw; without a point, the axes are empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = SIZE_INCHES
    below_inches = PARTS_INCHES if history.parts else 0.0
    figure = Figure(figsize=(width, height + below_inches), dpi=DPI, layout="constrained", facecolor="none")
    canvas = FigureCanvasAgg(figure)
    if history.parts:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(height, below_inches))
        _draw_parts(below, history)
    else:
        axes = below = figure.add_subplot()
    _draw_losses(axes, history)
    below.locator_params(axis="x", integer=True)
    below.set_xlabel(text("plot.step"), color=INK)
    below.set_xlim(left=0, right=None if history.losses or history.evaluations else 1)
    canvas.draw()
    return clear_png(np.asarray(canvas.buffer_rgba()))


def with_peaks(curve: Curve, points: int = POINTS) -> list[tuple[int, float]]:
    """A long curve with few points that looks the same: of each stretch the lowest and the highest one, and both ends.

    Args:
        curve: by step.
        points: how many to keep at most, about; a shorter curve is kept whole.
    """
    if len(curve) <= points:
        return list(curve)
    losses = np.fromiter((loss for _, loss in curve), dtype=float, count=len(curve))
    edges = np.linspace(0, len(curve), points // 2 + 1).astype(int)
    kept = {0, len(curve) - 1}
    for start, end in itertools.pairwise(edges.tolist()):
        stretch = losses[start:end]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    return [curve[index] for index in sorted(kept)]


def thinned(curve: Curve, points: int = SMOOTH_POINTS) -> list[tuple[int, float]]:
    """Every n-th point of a long curve, and its last one."""
    every = -(-len(curve) // points)
    if every <= 1:
        return list(curve)
    return [*curve[: len(curve) - 1 : every], curve[-1]]


def _draw_losses(axes: Axes, history: TrainingHistory) -> None:
    if history.losses:
        raw = with_peaks(history.losses)
        axes.plot(*_columns(raw), color=RAW, alpha=RAW_ALPHA, linewidth=0.9, label=text("plot.raw"))
        smooth = thinned(smoothed(history.losses))
        axes.plot(*_columns(smooth), color=SMOOTH, linewidth=1.8, label=text("plot.smooth"))
    if history.evaluations:
        points = _columns(history.evaluations)
        axes.plot(*points, color=EVALUATION, marker="o", markersize=3.5, linewidth=1.5, label=text("plot.evaluation"))
    framed(axes, text("plot.loss"), legend=bool(history.losses or history.evaluations))


def _draw_parts(axes: Axes, history: TrainingHistory) -> None:
    for (name, curve), (raw, smooth) in zip(history.parts.items(), itertools.cycle(PARTS), strict=False):
        axes.plot(*_columns(with_peaks(curve)), color=raw, alpha=RAW_ALPHA, linewidth=0.9)
        axes.plot(*_columns(thinned(smoothed(curve))), color=smooth, linewidth=1.8, label=name)
    framed(axes, text("plot.parts"), legend=True)


def framed(axes: Axes, label: str, *, legend: bool) -> None:
    """Give axes the letters and lines of all plots, and a label."""
    axes.set_facecolor("none")
    axes.set_ylabel(label, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.25)
    axes.spines[:].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        # Above the curves, which fill the axes; looking for a free corner takes long where there are many points.
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.98))


def clear_png(pixels: np.ndarray, colours: int = COLOURS) -> bytes:
    """RGBA pixels [H, W, 4] as PNG with a palette that keeps what shines through: a fifth of the size."""
    from PIL import Image

    image = Image.fromarray(pixels).quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [loss for _, loss in curve]
