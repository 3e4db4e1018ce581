"""The bar of a GPU's memory, as plain HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tunerkit_widgets.guard import ERROR_COLOUR
from tunerkit_widgets.list_rows import size_words
from tunerkit_widgets.plan_process import Figures
from tunerkit_widgets.texts import text

CONTEXT = 2**29
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


class Part(NamedTuple):
    """A part of a bar: its name for the reader, its colour as CSS has it, and its bytes."""

    name: str
    colour: str
    size: int


def bar_html(figures: Figures) -> str:
    """The parts of the phase that takes the most, with their sizes below."""
    parts = parts_of(figures.parts, figures.vram)
    whole = max(figures.vram or 0, sum(part.size for part in parts))
    return (
        f"<div style='max-width:720px;line-height:1.4'>{strip_html(parts, whole, figures.vram)}"
        f"{legend_html([part._replace(name=f'{part.name} {size_words(part.size)}') for part in parts])}</div>"
    )


def parts_of(parts: Mapping[str, int], vram: int | None) -> list[Part]:
    """What a phase takes, in the order of `PARTS`; CUDA's own part last, where there is a GPU to compare with."""
    order = list(PARTS)
    known = sorted((name for name, size in parts.items() if size), key=order.index)
    found = [(*PARTS[name], parts[name]) for name in known]
    if vram is not None:
        found.append((*CONTEXT_PART, CONTEXT))
    return [Part(text(key), colour, size) for key, colour, size in found]


def strip_html(parts: Sequence[Part], whole: int, vram: int | None) -> str:
    """Parts from left to right, with a mark where the GPU's memory ends; a screen reader says their sizes.

    Args:
        parts: as from `parts_of`.
        whole: bytes that the full width stands for.
        vram: bytes of the GPU's memory; None = not known.
    """
    taken = sum(part.size for part in parts)
    spoken = html.escape(", ".join(f"{part.name} {size_words(part.size)}" for part in parts), quote=True)
    drawn = "".join(
        f"<span style='flex:none;width:{part.size / whole:.2%};background:{part.colour}'></span>" for part in parts
    )
    edge = ERROR_COLOUR if vram is not None and taken > vram else BORDER
    return (
        f"<div role='img' aria-label='{spoken}' style='position:relative;display:flex;height:16px;"
        f"border:1px solid {edge};margin:0 4px 5px 0'>{drawn}{_limit(taken, whole, vram)}</div>"
    )


def legend_html(parts: Iterable[Part]) -> str:
    """The colours of parts, each beside its name."""
    named = "".join(
        f"<span style='white-space:nowrap'><span style='display:inline-block;width:10px;height:10px;"
        f"border:1px solid {BORDER};background:{part.colour}'></span> {html.escape(part.name)}</span>"
        for part in parts
    )
    return f"<div style='display:flex;flex-wrap:wrap;gap:0 14px;font-size:12px'>{named}</div>"


def _limit(taken: int, whole: int, vram: int | None) -> str:
    """A line across the bar where the memory ends, if that is inside of it; what is beyond is hatched."""
    if vram is None or vram >= whole:
        return ""
    place, end = f"{vram / whole:.2%}", f"{1 - taken / whole:.2%}"
    hatch = f"repeating-linear-gradient(135deg, transparent 0 6px, {LIMIT} 6px 7px)"
    beyond = f"<span style='position:absolute;left:{place};right:{end};top:0;bottom:0;background:{hatch}'></span>"
    line = f"<span style='position:absolute;left:{place};top:-4px;bottom:-4px;border-left:3px solid {LIMIT}'></span>"
    return (beyond if taken > vram else "") + line
