"""The evaluation loss by dataset over the steps, and by noise level at the first and the last evaluation."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tunerkit_widgets.loss_plot import DPI, EVALUATION, INK, RAW, SMOOTH, clear_png, framed
from tunerkit_widgets.previews import data_uri
from tunerkit_widgets.surroundings import show
from tunerkit_widgets.tables import table_html
from tunerkit_widgets.texts import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (9.6, 3.2)
LINES = (SMOOTH, EVALUATION, "#238b45", "#88419d", "#b8860b", "#17a2b8")
"""Colours of the datasets."""
Row = Mapping[str, Any]


class Evaluated(Protocol):
    """What is used of `tk.Run`."""

    def evaluations(self) -> list[dict[str, Any]]: ...


def show_evaluation(run: Evaluated) -> None:
    """Show how the loss at fixed noise went: of each dataset over the steps, and at each noise level.

    Low noise levels are about details, high ones about content and motion: where the curve of the last evaluation lies
    below that of the first one, the training has helped there.

    Args:
        run: as from `tk.start` or `tk.attach`.
    """
    rows = run.evaluations()
    if not rows:
        show(f"<p>{html.escape(text('evaluation.none'))}</p>", text("evaluation.none"))
        return
    picture = data_uri(evaluation_png(rows), "image/png")
    label = html.escape(evaluation_text(rows), quote=True)
    show(f"<div><img src='{picture}' alt='{label}'>{table_html(_table(rows))}</div>", evaluation_text(rows))


def evaluation_text(rows: Sequence[Row]) -> str:
    """One line for all clips and one for each dataset: the loss at the first and at the last evaluation."""
    return "\n".join(f"{name}: {words}" for name, words in _table(rows))


def evaluation_png(rows: Sequence[Row]) -> bytes:
    """Both pictures side by side, as PNG bytes with a clear background; the first alone where a run is of old."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = [row for row in rows if row.get("sigmas")]
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained", facecolor="none")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if levels else 1, squeeze=False)[0]
    _draw_datasets(axes[0], rows)
    if levels:
        _draw_levels(axes[1], levels)
    canvas.draw()
    return clear_png(np.asarray(canvas.buffer_rgba()))


def _draw_datasets(axes: Axes, rows: Sequence[Row]) -> None:
    curves = _curves(rows)
    for (name, curve), colour in zip(curves.items(), itertools.cycle(LINES), strict=False):
        steps, losses = zip(*curve, strict=True)
        axes.plot(steps, losses, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=name)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(text("plot.step"), color=INK)
    framed(axes, text("plot.evaluation_loss"), legend=True)


def _draw_levels(axes: Axes, rows: Sequence[Row]) -> None:
    chosen = [(rows[0], RAW), (rows[-1], SMOOTH)] if len(rows) > 1 else [(rows[0], SMOOTH)]
    for row, colour in chosen:
        points = sorted((float(sigma), loss) for sigma, loss in row["sigmas"].items())
        label = text("plot.after_step", step=row["step"])
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
    axes.set_xlim(0, 1)
    axes.set_xlabel(text("plot.noise_level"), color=INK)
    framed(axes, text("plot.evaluation_loss"), legend=True)


def _curves(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Dataset -> its curve; where no row tells of several, that of all clips."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("datasets") or {}))
    if len(names) < 2:
        return {text("plot.evaluation"): [(row["step"], row["loss"]) for row in rows]}
    told = [(row["step"], row.get("datasets") or {}) for row in rows]
    return {name: [(step, losses[name]) for step, losses in told if name in losses] for name in names}


def _table(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, first and last loss) of all clips, of each dataset where there are several, and of picture and sound."""
    curves = {text("evaluation.all"): [(row["step"], row["loss"]) for row in rows]}
    if len(found := _curves(rows)) > 1:
        curves |= found
    for part, name in (("video", "evaluation.video"), ("audio", "evaluation.audio")):
        curve = [(row["step"], row["parts"][part]) for row in rows if part in row.get("parts", {})]
        if curve:
            curves[text(name)] = curve
    return [(name, _change(curve)) for name, curve in curves.items()]


def _change(curve: Sequence[tuple[int, float]]) -> str:
    (first_step, first), (last_step, last) = curve[0], curve[-1]
    if len(curve) == 1:
        return text("evaluation.once", loss=f"{first:.4f}", step=first_step)
    share = f"{last / first:.0%}" if first else "-"
    return text(
        "evaluation.change", first=f"{first:.4f}", before=first_step, last=f"{last:.4f}", after=last_step, share=share
    )
