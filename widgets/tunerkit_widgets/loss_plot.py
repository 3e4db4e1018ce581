"""The loss curves as a picture.

Drawn with matplotlib's Figure and the Agg canvas only: pyplot keeps figures in a global list and must not be used from
widget callbacks, which may run in another thread.
"""

from __future__ import annotations

import io

import numpy as np

from tunerkit_widgets.history import Curve, TrainingHistory, smoothed
from tunerkit_widgets.texts import text

POINTS = 1500
"""Points of a drawn curve at most; more cannot be told apart in the picture."""
SIZE_INCHES = (7.2, 3.0)
DPI = 90
COLOURS = 64
RAW, SMOOTH, EVALUATION = "#9ecae1", "#1f6fb4", "#d95f02"


def loss_png(history: TrainingHistory) -> bytes:
    """Both losses over the steps, as PNG bytes: training loss raw and smoothed, evaluation loss with markers.

    Args:
        history: what to draw; without a point, the axes are empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if history.losses:
        axes.plot(*_columns(thinned(history.losses)), color=RAW, linewidth=0.9, label=text("plot.raw"))
        curve = thinned(smoothed(history.losses))
        axes.plot(*_columns(curve), color=SMOOTH, linewidth=1.8, label=text("plot.smooth"))
    if history.evaluations:
        steps, losses = _columns(history.evaluations)
        axes.plot(
            steps, losses, color=EVALUATION, marker="o", markersize=3.5, linewidth=1.5, label=text("plot.evaluation")
        )
    axes.set_xlabel(text("plot.step"))
    axes.set_ylabel(text("plot.loss"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    if history.losses or history.evaluations:
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _small_png(np.asarray(canvas.buffer_rgba()))


def _small_png(pixels: np.ndarray) -> bytes:
    """RGBA pixels [H, W, 4] as PNG with a palette: a fifth of the size, and lines need no more colours."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
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
