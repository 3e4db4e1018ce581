"""A plan: what each phase of a run takes of the GPU, the machine and the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.planning.advice import Change
    from tunerkit.planning.gpus import Gpu
    from tunerkit.planning.largest import Largest
    from tunerkit.planning.seconds import Seconds, Work
    from tunerkit.planning.verify import Verification

GIB = 2**30
CONTEXT_GIB = 0.5
"""What CUDA itself takes of a GPU."""


@dataclass(frozen=True)
class PhasePlan:
    """A phase of a run.

    Attributes:
        name: "text encoding", "clip encoding", "feature encoding", "loading", "training step", "validation" or
            "checkpoint".
        peak: most bytes of tensors at one time on the device.
        parts: what they are: weights, adapter, gradients, optimizer state, EMA, activations.
        ram: bytes of the machine's memory, beside what a Python process with the libraries takes.
        work: what one text, one batch of clips, the features of one clip, one step or one denoising pass with the
            decoding asks of the machine.
    """

    name: str
    peak: int
    parts: Mapping[str, int]
    ram: int
    work: Work


@dataclass(frozen=True)
class DiskPlan:
    """Bytes on disk.

    Attributes:
        download: of the base model, and of the image encoder where one is used; local folders count nothing.
        cache: latents, sound, features and texts of all clips; None where the clips are not known.
        checkpoint: one checkpoint.
        checkpoints: how many are kept at most.
        offloaded: weights in `group_offload_to_disk_path`, while the run goes on.
    """

    download: int
    cache: int | None
    checkpoint: int
    checkpoints: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        return self.download + (self.cache or 0) + self.checkpoint * self.checkpoints + self.offloaded


@dataclass(frozen=True)
class Plan:
    """What a run takes, before it starts. `print(plan)` shows it; so does a notebook, `plan.figure()` draws it.

    Attributes:
        config: the resolved settings.
        largest: the largest batch, which the plan is made for.
        phases: in the order in which they come.
        disk: files.
        vram: bytes of the GPU's memory that the plan is to fit; None where none is named and none is there.
        assumptions: what the plan rests on, and what it does not count.
        gpu: whose speed the seconds are for; None where it is not known.
    """

    config: TrainConfig
    largest: Largest
    phases: tuple[PhasePlan, ...]
    disk: DiskPlan
    vram: int | None
    assumptions: tuple[str, ...]
    gpu: Gpu | None = None
    samples: Sequence[Sample] = field(default=(), repr=False)
    """What is trained on, where it is known."""
    blocks: int = 0
    """How many blocks that are alike the transformer has."""

    @property
    def peak(self) -> int:
        """Most bytes of tensors on the device, over all phases."""
        return self.largest_phase.peak

    @property
    def largest_phase(self) -> PhasePlan:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def ram(self) -> int:
        """Most bytes of the machine's memory, over all phases."""
        return max(phase.ram for phase in self.phases)

    @property
    def room(self) -> int | None:
        """Bytes that are there for tensors: the GPU's memory less what CUDA itself takes; None where not known."""
        if self.vram is None or self.config.device == "cpu":
            return self.vram
        return self.vram - round(CONTEXT_GIB * GIB)

    @property
    def fits(self) -> bool | None:
        """Whether every phase fits; None where the memory is not known."""
        return None if self.room is None else self.peak <= self.room

    def phase(self, name: str) -> PhasePlan:
        """The phase called `name`.

        Raises:
            KeyError: the run has no such phase.
        """
        return {one.name: one for one in self.phases}[name]

    @property
    def seconds(self) -> Seconds | None:
        """Estimate of a step's seconds; None where the GPU's speed is not known."""
        if self.gpu is None:
            return None
        from tunerkit.planning.seconds import estimate

        return estimate(self.phase("training step").work, self.gpu)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What makes the run fit, the fastest first, each on top of those before; empty where it fits.

        Where even all of them do not suffice, they are all listed, and the last one's plan does not fit.
        """
        from tunerkit.planning.advice import changes

        return tuple(changes(self))

    def verify(self) -> Verification:
        """Do two real steps at the largest bucket, and compare the second one's peak with the plan.

        The cache is filled for that batch, and the model is loaded; nothing is saved.
        """
        from tunerkit.planning.verify import verify

        return verify(self)

    def to_text(self) -> str:
        from tunerkit.planning.tables import to_text

        return to_text(self)

    def figure(self) -> Any:
        """A matplotlib figure: a bar for each phase, made of its parts, and the GPU's memory as a line.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from tunerkit.planning.tables import figure

        return figure(self)

    def _repr_html_(self) -> str:
        from tunerkit.planning.tables import to_html

        return to_html(self)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"Plan({size(self.peak)} in {self.largest_phase.name}, fits={self.fits})"


def size(count: float) -> str:
    """Bytes as people read them: `"14.7 GiB"`, `"9.21 GiB"`, `"310 MiB"`."""
    if count < GIB:
        return f"{count / 2**20:.3g} MiB"
    return f"{count / GIB:.1f} GiB" if count >= 10 * GIB else f"{count / GIB:.2f} GiB"
