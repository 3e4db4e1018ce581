"""Plans of memory, made in a process of their own.

Not in a thread of the kernel: a trace puts stand-ins in the place of a few of torch's functions, which other cells may
be using, loads the model libraries (some seconds, and RAM that a kernel never gives back), and holds up the page.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, NamedTuple

import tunerkit as tk


class Question(NamedTuple):
    """What to plan.

    Attributes:
        key: all that the answer depends on, as text.
        config: resolved settings.
        samples: one of each kind that is trained on; empty where that is not known.
        vram_gib: memory of the GPU in GiB; None = of this machine's.
        advise: whether to look for a change where it does not fit.
    """

    key: str
    config: tk.TrainConfig
    samples: Sequence[Any]
    vram_gib: float | None
    advise: bool


class Batch(NamedTuple):
    """What the largest batch is made of.

    Attributes:
        width, height: pixels.
        frames: of a clip.
        clips: how many.
        sound: seconds of sound of each clip; None = trained without.
    """

    width: int
    height: int
    frames: int
    clips: int
    sound: float | None = None


@dataclass(frozen=True)
class Way:
    """What saves memory.

    Attributes:
        changes: settings by name, as `config.changed` takes them, and the key of what each change means.
        peak: bytes of the GPU's memory that the run takes with all of them.
        ram: bytes of the machine's memory that it takes then.
        fits: whether it fits with all of them.
    """

    changes: Sequence[tuple[Mapping[str, Any], str]]
    peak: int
    ram: int
    fits: bool

    @property
    def settings(self) -> dict[str, Any]:
        """All of them."""
        return {name: value for settings, _ in self.changes for name, value in settings.items()}


@dataclass(frozen=True)
class Figures:
    """The phase of a run that takes the most.

    Attributes:
        phase: its name.
        peak: bytes of tensors on the GPU.
        parts: what they are, by name.
        batch: the largest one.
        ram: bytes of the machine's memory that the run takes, over all phases, beside Python and the libraries.
        vram: bytes of the GPU's memory; None = not known.
        fits: whether the run fits; None = not known.
        way: what makes it fit, or comes nearest, once it was looked for; None = nothing, or not yet.
        complete: whether it was looked for, where there is need.
    """

    phase: str
    peak: int
    parts: Mapping[str, int]
    batch: Batch
    ram: int
    vram: int | None
    fits: bool | None
    way: Way | None = None
    complete: bool = False


def figures(question: Question) -> Iterator[Figures]:
    """The plan; and again with what makes it fit where it does not, which takes longer to find.

    Raises:
        TunerkitError: it cannot be planned.
    """
    found = tk.plan(question.config, question.vram_gib, samples=question.samples)
    known = figures_of(found)
    if found.fits is False and question.advise:
        yield replace(known, complete=False)
        yield replace(known, way=way_of(found))
    else:
        yield known


def figures_of(plan: tk.Plan) -> Figures:
    """The figures of a plan, without what makes it fit."""
    phase, largest = plan.largest_phase, plan.largest
    batch = Batch(largest.width, largest.height, largest.frames, largest.clips, largest.sound)
    parts = dict(phase.parts)
    return Figures(phase.name, phase.peak, parts, batch, plan.ram, plan.vram, plan.fits, complete=True)


def way_of(plan: tk.Plan) -> Way | None:
    """What makes a plan fit, or comes nearest; None where it fits, and where nothing saves memory."""
    changes = plan.changes
    if not changes:
        return None
    last = changes[-1].plan
    return Way([(dict(one.settings), one.key) for one in changes], last.peak, last.ram, bool(last.fits))


class PlanProcess:
    """The process; it is started for the first question, and ends with this one or `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Question) -> Iterator[Figures]:
        """As `figures`.

        Raises:
            TunerkitError: it cannot be planned, or the process has ended.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tunerkit_widgets.plan_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt of the kernel is not meant for it
            )
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        try:
            pickle.dump(question, questions)
            questions.flush()
            while (answer := pickle.load(answers)) is not None:
                if isinstance(answer, str):
                    raise tk.TunerkitError(answer)
                yield answer
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise tk.TunerkitError(f"the process that plans has ended with code {code}") from error

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer questions until there are no more: with figures, or the text of an error; None ends an answer."""
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        for answer in _answers(question):
            pickle.dump(answer, answers)
            answers.flush()


def _answers(question: Question) -> Iterator[Figures | str | None]:
    try:
        yield from figures(question)
    except Exception as error:
        yield str(error) if isinstance(error, tk.TunerkitError) else f"{type(error).__name__}: {error}"
        return
    yield None


def main() -> None:
    """The process: questions come and answers go where a program reads and prints; what prints does so elsewhere."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    # The module under its own name: answers are of its classes, and not of those of `__main__`.
    from tunerkit_widgets import plan_process

    plan_process.main()
