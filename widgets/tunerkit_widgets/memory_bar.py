"""The bar of a GPU's memory, as plain HTML."""

from __future__ import annotations

import html

from tunerkit_widgets.guard import ERROR_COLOUR
from tunerkit_widgets.plan_process import Figures
from tunerkit_widgets.texts import text

GIB = 2**30
CONTEXT = GIB // 2
"""What CUDA itself takes of a GPU, in bytes; as `tk.plan` counts it."""
PARTS = {
    "weights": ("memory.weights", "var(--jp-brand-color1, #1976d2)"),
    "adapter": ("memory.adapter", "var(--jp-brand-color3, #bbdefb)"),
    "optimizer state": ("memory.optimizer_state", "var(--jp-accent-color1, #388e3c)"),
    "EMA": ("memory.ema", "var(--jp-accent-color3, #c8e6c9)"),
    "gradients": ("memory.gradients", "var(--jp-warn-color2, #ffb74d)"),
    "activations": ("memory.activations", "var(--jp-warn-color0, #e65100)"),
}
"""Part of a plan -> key of its name, and its colour: JupyterLab's own."""
CONTEXT_PART = ("memory.context", "var(--jp-layout-color4, #9e9e9e)")
BORDER = "var(--jp-border-color1, #bdbdbd)"
LIMIT = "var(--jp-ui-font-color0, #000)"


def bar_html(figures: Figures) -> str:
    """The parts of the phase that takes the most, from left to right, with a mark where the GPU's memory ends.

    The bar is a picture for a screen reader, which says what stands below it.
    """
    parts = [(*PARTS.get(name, (name, BORDER)), size) for name, size in figures.parts.items() if size]
    order = [key for key, _ in PARTS.values()]
    parts.sort(key=lambda part: order.index(part[0]) if part[0] in order else len(order))
    parts.append((*CONTEXT_PART, CONTEXT))
    whole = max(figures.vram or 0, sum(size for *_, size in parts))
    named = [(text(key) if "." in key else key, colour, size) for key, colour, size in parts]
    spoken = ", ".join(f"{name} {size_words(size)}" for name, _, size in named)
    drawn = "".join(
        f"<span style='flex:none;width:{size / whole:.2%};background:{colour}'></span>" for _, colour, size in named
    )
    legend = "".join(
        f"<span style='white-space:nowrap'><span style='display:inline-block;width:10px;height:10px;"
        f"border:1px solid {BORDER};background:{colour}'></span> {html.escape(name)} {size_words(size)}</span>"
        for name, colour, size in named
    )
    edge = ERROR_COLOUR if figures.fits is False else BORDER
    return (
        f"<div role='img' aria-label='{html.escape(spoken, quote=True)}' style='max-width:720px;line-height:1.4'>"
        f"<div style='position:relative;display:flex;height:16px;border:1px solid {edge};margin:0 4px 5px 0'>"
        f"{drawn}{_limit(figures, whole)}</div>"
        f"<div style='display:flex;flex-wrap:wrap;gap:0 14px;font-size:12px'>{legend}</div></div>"
    )


def _limit(figures: Figures, whole: int) -> str:
    """A line across the bar where the memory ends, if that is inside of it; what is beyond is hatched."""
    if figures.vram is None or figures.vram >= whole:
        return ""
    place = f"{figures.vram / whole:.2%}"
    hatch = f"repeating-linear-gradient(135deg, transparent 0 6px, {LIMIT} 6px 7px)"
    return (
        f"<span style='position:absolute;left:{place};right:0;top:0;bottom:0;background:{hatch}'></span>"
        f"<span style='position:absolute;left:{place};top:-4px;bottom:-4px;border-left:3px solid {LIMIT}'></span>"
    )


def size_words(size: float) -> str:
    """Bytes as people read them, for example "14.7 GiB" or "310 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.3g} MiB"
