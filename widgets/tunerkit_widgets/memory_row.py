"""The memory of a GPU in a form: whether the settings fit, and a button for what makes them fit."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

import tunerkit as tk
from tunerkit_widgets.form_debounce import threads_reach_page
from tunerkit_widgets.form_memory import REST, MemoryPlans, plan_html, question, quiet, way_html
from tunerkit_widgets.guard import ERROR_COLOUR
from tunerkit_widgets.plan_process import Question, Way
from tunerkit_widgets.texts import text

SIZES = (8, 12, 16, 24, 32, 48, 80)
"""GiB of usual GPUs."""
OWN_GPU = 0


class MemoryRow:
    """A button, the size of the GPU's memory, a bar, and what makes it fit.

    Nothing is planned before somebody asks, by the button or by choosing a size: the first plan of a model takes some
    seconds to a minute and, for the libraries that it loads, a gigabyte of RAM. From then on plans follow the settings,
    where the page shows what a thread changes.

    Args:
        plans: makes them.
        gib: the chosen size; `OWN_GPU` = that of this machine.
    """

    def __init__(self, plans: MemoryPlans, gib: int = OWN_GPU) -> None:
        self._plans = plans
        self.way: Way | None = None
        """What the button applies."""
        self.plan_button: Any = widgets.Button(
            description=text("memory.plan"), icon="microchip", tooltip=text("memory.plan_help")
        )
        self.size: Any = widgets.Dropdown(
            description=text("memory.size"),
            options=[(text("memory.own_gpu"), OWN_GPU), *((f"{size} GiB", size) for size in SIZES)],
            value=gib,
            style={"description_width": "auto"},
            layout=widgets.Layout(width="auto"),
        )
        self.said, self.advice = widgets.HTML(), widgets.HTML()
        self.apply_button: Any = widgets.Button(
            description=text("memory.apply"), icon="magic", tooltip=text("memory.apply_help")
        )
        self._advice_box = widgets.VBox([self.advice, self.apply_button])
        self.box: Any = widgets.VBox([_line(self.plan_button, self.size), self.said, self._advice_box])
        self._advise("", None)

    def show(self, config: tk.TrainConfig | None, samples: Sequence[Any], advise: bool) -> None:
        """Show what was planned for just these settings; plan them, if somebody has asked for plans.

        Args:
            config: resolved settings; None where they are wrong.
            samples: what is trained on, where it is known.
            advise: whether to look for what makes it fit.
        """
        self.plan_button.disabled = config is None
        wanted = self._question(config, samples, advise) if config else None
        planned = self._plans.of(wanted) if wanted else None
        if planned is None:
            if wanted and self._plans.asked and threads_reach_page():
                self._plans.start(wanted, REST)
                self.said.value = quiet(text("memory.planning"))
            else:
                self.said.value = quiet(text("memory.not_planned" if wanted else "memory.not_yet"))
            self._advise("", None)
        elif planned.figures is None:
            self.said.value = f"<span style='color:{ERROR_COLOUR}'>{html.escape(planned.trouble)}</span>"
            self._advise("", None)
        else:
            self.said.value = plan_html(planned.figures)
            self._advise(way_html(planned.figures), planned.figures.way)

    def plan(self, config: tk.TrainConfig, samples: Sequence[Any], advise: bool) -> None:
        """Plan now; as `show` otherwise. Where the page does not show what a thread changes, wait for it."""
        self._plans.asked = True
        self._plans.start(self._question(config, samples, advise), rest=0, anew=True)
        if not threads_reach_page():
            self._plans.wait()

    def _question(self, config: tk.TrainConfig, samples: Sequence[Any], advise: bool) -> Question:
        return question(config, samples, float(self.size.value) or None, advise=advise)

    def _advise(self, words: str, way: Way | None) -> None:
        self.advice.value, self.way = words, way
        self.apply_button.layout.display = None if way else "none"
        self._advice_box.layout.display = None if words else "none"


def _line(*parts: Any) -> Any:
    return widgets.HBox(parts, layout=widgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="0 12px"))
