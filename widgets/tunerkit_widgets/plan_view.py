"""A plan in a notebook."""

from __future__ import annotations

import html
from dataclasses import replace

import tunerkit as tk
from tunerkit_widgets.form_memory import PHASES, verdict_html, way_html
from tunerkit_widgets.list_rows import size_words
from tunerkit_widgets.memory_bar import legend_html, parts_of, strip_html
from tunerkit_widgets.plan_process import figures_of, way_of
from tunerkit_widgets.surroundings import show
from tunerkit_widgets.texts import duration, text

_GRID = (
    "display:grid;grid-template-columns:max-content minmax(100px,1fr) max-content max-content;"
    "gap:4px 12px;align-items:center;margin:8px 0;line-height:1.4"
)
"""Not a table: JupyterLab gives the columns of one their widths."""


def show_plan(plan: tk.Plan) -> None:
    """Show a plan: its phases as bars beside the GPU's memory, and what makes it fit.

    Args:
        plan: as from `tk.plan`.
    """
    show(plan_html(plan), str(plan))


def plan_html(plan: tk.Plan) -> str:
    """The same as HTML; all numbers, in English, are folded below."""
    figures = figures_of(plan)
    if plan.fits is False:
        figures = replace(figures, way=way_of(plan))
    disk = text("memory.disk", size=size_words(plan.disk.total))
    lines = [html.escape(words) for words in (disk, _seconds_words(plan)) if words]
    return (
        f"<div style='max-width:900px'>{verdict_html(figures)}{_phases_html(plan)}"
        f"<div style='line-height:1.4;margin:6px 0'>{'<br>'.join(lines)}</div>{way_html(figures)}"
        f"<details><summary>{html.escape(text('memory.details'))}</summary>{plan._repr_html_()}</details></div>"
    )


def _phases_html(plan: tk.Plan) -> str:
    """A bar for each phase, all to one scale, with what it takes of the GPU and of RAM."""
    phases = [(phase, parts_of(phase.parts, plan.vram)) for phase in plan.phases]
    whole = max(plan.vram or 0, *(sum(part.size for part in parts) for _, parts in phases))
    cells = ["", "", f"<b>{html.escape(text('memory.size'))}</b>", "<b>RAM</b>"]
    for phase, parts in phases:
        cells += [html.escape(text(PHASES[phase.name])), strip_html(parts, whole, plan.vram), size_words(phase.peak)]
        cells.append(size_words(phase.ram) if phase.ram else "")
    used = {name: 1 for phase in plan.phases for name, size in phase.parts.items() if size}
    grid = "".join(f"<div>{cell}</div>" for cell in cells)
    return f"<div style='{_GRID}'>{grid}</div>{legend_html(parts_of(used, plan.vram))}"


def _seconds_words(plan: tk.Plan) -> str:
    """How long a step takes; empty where the GPU's speed is not known."""
    if plan.gpu is None or plan.seconds is None:
        return ""
    return text(
        "memory.seconds", gpu=plan.gpu.name, typical=time_words(plan.seconds.typical), low=time_words(plan.seconds.low)
    )


def time_words(seconds: float) -> str:
    """Two digits below a minute."""
    return duration(seconds) if seconds >= 60 else f"{seconds:.2g} s"
