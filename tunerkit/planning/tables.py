"""How a plan is shown: as text, as an HTML table, as a bar chart."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunerkit.errors import MissingExtraError
from tunerkit.planning.result import CONTEXT_GIB, GIB, size

if TYPE_CHECKING:
    from tunerkit.planning.result import Plan

PARTS = ("weights", "adapter", "optimizer state", "EMA", "gradients", "activations")
_COLOURS = ("#4c6a92", "#7ba3cc", "#b0875f", "#d9b48f", "#8a9a5b", "#c8553d")


def to_text(plan: Plan) -> str:
    """The table with aligned columns, a line on whether it fits, the disk, and the assumptions."""
    rows = _rows(plan)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([headline(plan), "", *table, "", *_remarks(plan), *(f"- {one}" for one in plan.assumptions)])


def to_html(plan: Plan) -> str:
    """The same as a plain HTML table."""
    head, *rows = _rows(plan)
    cells = "".join(f"<th style='text-align:right'>{html.escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:right'>{html.escape(one)}</td>" for one in row) + "</tr>"
        for row in rows
    )
    remarks = "".join(f"<p>{html.escape(one)}</p>" for one in _remarks(plan) if one)
    assumed = "".join(f"<li>{html.escape(one)}</li>" for one in plan.assumptions)
    return (
        f"<p><b>{html.escape(headline(plan))}</b></p><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
        f"{remarks}<details><summary>Assumptions</summary><ul>{assumed}</ul></details>"
    )


def headline(plan: Plan) -> str:
    """The peak, in which phase it is, and whether it fits."""
    need = f"{size(plan.peak)} at most, in {plan.largest_phase.name} ({plan.largest.label})"
    if plan.vram is None:
        return f"{need}; no GPU is named, and none was found."
    verdict = "It fits" if plan.fits else "It does not fit"
    context = "" if plan.room == plan.vram else f", of which CUDA itself takes about {CONTEXT_GIB:g} GiB"
    return f"{need}. {verdict} {size(plan.vram)}{context}."


def _rows(plan: Plan) -> list[list[str]]:
    used = [part for part in PARTS if any(phase.parts.get(part) for phase in plan.phases)]
    unit, name = _unit(plan)
    rows = [[f"phase ({name})", "peak", *used, "RAM", "TFLOP", "copied"]]
    for phase in plan.phases:
        work = phase.work
        sizes = [phase.peak, *(phase.parts.get(part, 0) for part in used), phase.ram]
        flops = f"{(work.flops + work.flops_fp32) / 1e12:.1f}"
        copied = _number((work.link + work.link_beside) / unit)
        rows.append([phase.name, *(_number(one / unit) for one in sizes), flops, copied])
    return rows


def _unit(plan: Plan) -> tuple[int, str]:
    """What sizes of a plan are shown in, in bytes, and its name."""
    return (GIB, "GiB") if plan.peak >= GIB else (2**20, "MiB")


def _remarks(plan: Plan) -> Iterator[str]:
    disk = plan.disk
    cache = "clips not counted" if disk.cache is None else f"{size(disk.cache)} of cached clips and texts"
    many = f"{disk.checkpoints} checkpoint{'' if disk.checkpoints == 1 else 's'} of {size(disk.checkpoint)}"
    waiting = f", {size(disk.offloaded)} of weights in group_offload_to_disk_path" if disk.offloaded else ""
    yield f"On disk: {size(disk.download)} to download, {cache}, {many}{waiting}."
    if plan.gpu is not None:
        yield f"A step on {plan.gpu.name}: {plan.seconds}."
        if not plan.gpu.bf16 and plan.config.mixed_precision == "bf16":
            yield f"{plan.gpu.name} has no hardware for bf16: set mixed_precision = fp16."
    if plan.fits is False:
        yield from _advice(plan)


def _advice(plan: Plan) -> Iterator[str]:
    if not plan.changes:
        yield "No setting is left that saves memory."
        return
    last = plan.changes[-1]
    yield "What makes it fit, the fastest first for each phase:" if last.fits else "What saves memory:"
    yield from (f"  {change}" for change in plan.changes)
    if not last.fits:
        left = f"with all of these it still takes {size(last.plan.peak)}"
        yield f"It does not fit: {left}. Use a GPU with more memory, a smaller model, or smaller clips."


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def figure(plan: Plan) -> Any:
    """See `Plan.figure`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plan.figure()", "matplotlib", "workbench") from None
    unit, name = _unit(plan)
    picture = Figure(figsize=(8, 0.6 * len(plan.phases) + 1.4), layout="constrained")
    axes = picture.subplots()
    names = [phase.name for phase in plan.phases]
    starts = [0.0] * len(names)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        sizes = [phase.parts.get(part, 0) / unit for phase in plan.phases]
        if any(sizes):
            axes.barh(names, sizes, left=starts, label=part, color=colour)
            starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    if plan.room is not None:
        _line(axes, plan.room / unit, size(plan.room))
    axes.invert_yaxis()
    axes.set_xlabel(f"{name} on the device")
    picture.legend(loc="outside lower center", ncols=len(PARTS), fontsize="small")  # never over a bar
    return picture


def _line(axes: Any, limit: float, words: str) -> None:
    axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    axes.annotate(words, (limit, 0), xytext=(3, 0), textcoords="offset points", fontsize="small")
