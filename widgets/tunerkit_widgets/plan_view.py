"""A plan in a notebook."""

from __future__ import annotations

import io

import tunerkit as tk
from tunerkit_widgets.loss_plot import DPI
from tunerkit_widgets.surroundings import show, show_png


def show_plan(plan: tk.Plan) -> None:
    """Show a plan as a table, and its phases as bars beside the GPU's memory.

    Args:
        plan: as from `tk.plan`.
    """
    show(plan._repr_html_(), str(plan))
    png = io.BytesIO()
    plan.figure().savefig(png, format="png", dpi=DPI)
    show_png(png.getvalue())
