"""What a run takes of a GPU's memory, planned beside a form, and in words. No widgets here."""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import tunerkit as tk
from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR, QUIET_COLOUR
from tunerkit_widgets.list_rows import size_words
from tunerkit_widgets.memory_bar import bar_html
from tunerkit_widgets.plan_process import Batch, Figures, PlanProcess, Question
from tunerkit_widgets.setting_field import as_text
from tunerkit_widgets.texts import text

REST = 1.0
"""Seconds without another edit after which settings are planned: a trace takes longer than a count."""
IDLE = 300.0
"""Seconds without anything to plan after which the process is let go, with its RAM."""
LIBRARIES = 2 * 2**30
"""Bytes of RAM that Python and the libraries take beside what is planned."""
_OTHER_GROUPS = ("checkpoints",)
_OTHER_NAMES = frozenset({"max_train_steps", "num_train_epochs", "learning_rate", "seed", "output_dir", "cache_dir"})

PHASES = {
    "text encoding": "memory.text_encoding",
    "clip encoding": "memory.clip_encoding",
    "feature encoding": "memory.feature_encoding",
    "loading": "memory.loading",
    "training step": "memory.training_step",
    "validation": "memory.validation",
    "checkpoint": "memory.checkpoint",
}


class Planned(NamedTuple):
    """What was planned.

    Attributes:
        key: of the question.
        figures: None where there is no plan.
        trouble: why, in words.
    """

    key: str
    figures: Figures | None = None
    trouble: str = ""


class MemoryPlans:
    """Plans in a process that a thread waits for, one plan at a time; figures are only ever given for the settings that
    they were planned for.

    Args:
        tell: called from the thread with every answer; must not raise.

    Attributes:
        asked: whether somebody wanted a plan: from then on, plans follow the settings.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        self.asked = False
        self._tell = tell
        self._changed = threading.Condition()  # its lock can be taken again by the thread that has it
        self._thread: threading.Thread | None = None
        self._process = PlanProcess()
        self._wanted: Question | None = None
        self._rest = REST
        self._current = ""
        self._planned: Planned | None = None

    def of(self, question: Question) -> Planned | None:
        """What was planned; None where that was not done yet."""
        with self._changed:
            return self._planned if self._planned is not None and self._planned.key == question.key else None

    def start(self, question: Question, rest: float = REST, *, anew: bool = False) -> None:
        """Plan, next if something else is being planned, unless other settings follow within `rest` seconds.

        Args:
            anew: also what is planned already.
        """
        with self._changed:
            if question.key == self._current or (self.of(question) and not anew):
                self._wanted = None
                return
            self._wanted, self._rest = question, rest
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tunerkit-plan", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until nothing is being planned."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted is None and not self._current)

    def _work(self) -> None:
        while (question := self._next()) is not None:
            planned = None
            try:
                for figures in self._process.ask(question):
                    self._take(Planned(question.key, figures))
            except Exception as error:
                planned = Planned(question.key, trouble=str(error) or type(error).__name__)
            self._take(planned, last=True)

    def _next(self) -> Question | None:
        """What to plan next; None after a long time without."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._wanted is not None, IDLE):
                self._process.close()
                self._thread = None
                return None
            while self._changed.wait(self._rest):
                pass
            question, self._wanted = self._wanted, None
            assert question is not None
            self._current = question.key
            return question

    def _take(self, planned: Planned | None, *, last: bool = False) -> None:
        with self._changed:
            self._planned = planned or self._planned
            if last:
                self._current = ""
                self._changed.notify_all()
        self._tell()


def question(config: tk.TrainConfig, samples: Sequence[Any], vram_gib: float | None, *, advise: bool) -> Question:
    """What to plan for resolved settings.

    Args:
        samples: what is trained on, where it is known.
        vram_gib: memory of the GPU in GiB; None = of this machine's.
        advise: whether to look for what makes it fit.
    """
    kinds = {(one.dataset, one.bucket, one.fps, one.is_i2v, one.mask is None): one for one in samples}
    key = f"{vram_gib} {advise} {sorted(kinds)} {config.model_dump_json(exclude=_other_names())}"
    return Question(key, config, tuple(kinds.values()), vram_gib, advise)


@cache
def _other_names() -> set[str]:
    """The settings that a plan cannot depend on."""
    return {info.name for info in tk.describe() if info.group in _OTHER_GROUPS} | _OTHER_NAMES


# Words ---------------------------------------------------------------------------------------------------------


def plan_html(figures: Figures) -> str:
    """The bar, and a line on whether it fits."""
    return f"{bar_html(figures)}{verdict_html(figures)}"


def verdict_html(figures: Figures) -> str:
    """A line on whether it fits, and what it takes."""
    words = text(
        "memory.peak",
        peak=size_words(figures.peak),
        phase=text(PHASES[figures.phase]),
        batch=batch_words(figures.batch),
        ram=size_words(figures.ram),
    )
    if figures.vram is None:
        colour, verdict = QUIET_COLOUR, text("memory.no_gpu")
    elif figures.fits:
        colour, verdict = GOOD_COLOUR, "✓ " + text("memory.fits", vram=size_words(figures.vram))
    else:
        colour, verdict = ERROR_COLOUR, "✗ " + text("memory.too_much", vram=size_words(figures.vram))
    line = f"<b style='color:{colour}'>{html.escape(verdict)}</b> {html.escape(words)}"
    return f"<div style='line-height:1.4'>{line}{_ram_html(figures.ram)}</div>"


def batch_words(batch: Batch) -> str:
    """A batch, for example "832x480, 81 frames, batch of 1"."""
    words = [f"{batch.width}x{batch.height}"]
    if batch.frames > 1:
        words.append(text("memory.frames", count=batch.frames))
    if batch.sound is not None:
        words.append(text("memory.sound", seconds=f"{batch.sound:.2f}"))
    return ", ".join([*words, text("memory.batch", count=batch.clips)])


def _ram_html(needed: int) -> str:
    """That the machine's memory is too small; empty where it suffices, or is not known."""
    there = machine_ram()
    if there is None or needed + LIBRARIES <= there:
        return ""
    return f" <b style='color:{ERROR_COLOUR}'>{html.escape(text('memory.ram_short', there=size_words(there)))}</b>"


def machine_ram() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def way_html(figures: Figures) -> str:
    """What makes it fit, or that it is being looked for; empty where there is no need."""
    if figures.fits is not False:
        return ""
    if not figures.complete:
        return quiet(text("memory.searching"))
    if figures.way is None:
        return quiet(text("memory.no_way"))
    way = figures.way
    named = "".join(f"<li>{_change_html(settings, kind)}</li>" for settings, kind in way.changes)
    effect = text(
        "memory.then_fits" if way.fits else "memory.then",
        saved=size_words(figures.peak - way.peak),
        peak=size_words(way.peak),
        ram=size_words(way.ram),
    )
    return (
        f"<div style='line-height:1.4'>{html.escape(text('memory.to_fit'))}<ul style='margin:2px 0'>{named}</ul>"
        f"{html.escape(effect)}{_ram_html(way.ram)}</div>"
    )


def _change_html(settings: Mapping[str, Any], kind: str) -> str:
    """A change, and what it does and costs."""
    named = ", ".join(f"{name} = {as_text(value)}" for name, value in settings.items())
    return f"<code style='font-size:inherit'>{html.escape(named)}</code>: {html.escape(text(f'change.{kind}'))}"


def quiet(words: str) -> str:
    return f"<span style='color:{QUIET_COLOUR}'>{html.escape(words)}</span>"
