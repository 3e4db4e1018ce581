"""What methods of training cost, each beside the plain step."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import tunerkit as tk
from tunerkit_widgets.list_rows import size_words
from tunerkit_widgets.plan_view import time_words
from tunerkit_widgets.surroundings import show
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text

STEP = "training step"


def show_methods(plan: tk.Plan, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Show what each method would take of a step, and of those that cannot be used here, why.

    Args:
        plan: of the settings as they are.
        methods: name -> settings that turn the method on.
    """
    rows, refused = [_row(text("methods.none"), plan, plan)], []
    for name, settings in methods.items():
        try:
            config = plan.config.changed(**settings)
            rows.append(_row(name, tk.plan(config, _vram_gib(plan), samples=plan.samples, gpu=_gpu(plan)), plan))
        except tk.ConfigError as error:
            refused += [f"{name}: {problem.message}. {problem.fix}" for problem in error.problems]
    head = [text("methods.method"), text("memory.size"), text("methods.work")]
    if plan.seconds is not None:
        head.append(text("methods.seconds"))
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in refused)
    show(f"<div>{table_html(rows, head)}{lines}</div>", "\n".join([table_text(rows, head), *refused]))


def _row(name: str, plan: tk.Plan, plain: tk.Plan) -> tuple[str, ...]:
    """Name, memory and arithmetic of a step, and its seconds where the GPU's speed is known."""
    more = _work(plan) / _work(plain) - 1
    seconds = () if plan.seconds is None else (time_words(plan.seconds.typical),)
    return (name, size_words(plan.phase(STEP).peak), "" if plan is plain else f"{more:+.0%}", *seconds)


def _work(plan: tk.Plan) -> float:
    """Floating-point operations of a step."""
    work = plan.phase(STEP).work
    return work.flops + work.flops_fp32


def _vram_gib(plan: tk.Plan) -> float | None:
    return None if plan.vram is None else plan.vram / 2**30


def _gpu(plan: tk.Plan) -> str | None:
    return None if plan.gpu is None else plan.gpu.name
