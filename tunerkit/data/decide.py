"""The decision about one file: its frames, size and captions, or every reason why it is not used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunerkit.data.captions import CaptionError, CaptionRules, read_captions, read_text
from tunerkit.data.discover import Found, caption_name
from tunerkit.data.frames import DEFAULT_SECONDS, FramePlan, FrameRules, decide_frames
from tunerkit.data.geometry import Refusal, SizePlan, SizeRules, plan_size, refuse_size, size_remarks
from tunerkit.data.media import Clock, Media, UnreadableMedia
from tunerkit.data.media_memory import MediaMemory
from tunerkit.data.samples import ClipRow, Kind, Sample, Size, Source

STILL_PLAN = FramePlan(((0,),), "image, 1 frame", "", "")


@dataclass(frozen=True)
class Rules:
    """Everything that decides about the files of one dataset."""

    dataset: str
    dataset_type: str
    frames: FrameRules
    size: SizeRules
    captions: CaptionRules
    multiple: int
    legal_frames: Callable[[int], int]
    model_sizes: tuple[Size, ...]
    target_fps: float
    repeats: int
    is_i2v: bool

    @property
    def asked(self) -> str:
        """The frames and the size that the settings ask for."""
        wanted = self.frames.num_frames
        frames = f"video.num_frames = {wanted}" if wanted else f"up to {DEFAULT_SECONDS:g} s"
        if self.size.resolution_type == "model":
            return f"{frames}, a size of the model"
        return f"{frames}, resolution = {self.size.resolution:g} ({self.size.resolution_type})"


@dataclass(frozen=True)
class Trouble:
    """One reason why a file is dropped."""

    reason: str
    fix: str
    cause: str


@dataclass(frozen=True)
class _Windows:
    """The frames taken of all clips with the same timestamps."""

    plan: FramePlan
    times: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class _Sizing:
    """The size of all files with the same width and height."""

    plan: SizePlan
    refusal: Refusal | None
    remarks: tuple[str, ...]


class Decider:
    """Decides about the files of one dataset. What equal files share is worked out, and kept in memory, once."""

    def __init__(self, rules: Rules, memory: MediaMemory) -> None:
        self.rules = rules
        self.memory = memory
        size = rules.size
        self._size_varies = size.crop_style == "random" or (size.crop and size.crop_aspect == "random")
        self._asked = rules.asked
        self._windows: dict[tuple[bool, Clock, float, float, bool], _Windows] = {}
        self._sizings: dict[tuple[int, int, str], _Sizing] = {}
        self._reasons: dict[str, str] = {}

    def decide(self, found: Found, media: Media | UnreadableMedia) -> ClipRow:
        """The row of a file that was probed. Never raises: trouble of any kind becomes a row that says what it is."""
        if isinstance(media, UnreadableMedia):
            return self.dropped(found.file, found.kind, None, [Trouble(media.reason, media.fix, media.cause)])
        try:
            return self._decide(found, media)
        except Exception as error:
            # One file must not stop the other thousand.
            trouble = Trouble(
                f"deciding about it failed unexpectedly: {type(error).__name__}: {error}",
                "check that the file plays, export it again, or remove it",
                "unreadable",
            )
            return self.dropped(found.file, found.kind, media.source, [trouble], media.remarks)

    def dropped(
        self,
        file: Path,
        kind: Kind,
        source: Source | None,
        troubles: list[Trouble],
        remarks: tuple[str, ...] = (),
    ) -> ClipRow:
        """The row of a file or folder that is not used."""
        return ClipRow(
            dataset=self.rules.dataset,
            file=file,
            kind=kind,
            decision="dropped",
            reason="; ".join([*(trouble.reason for trouble in troubles), *remarks]),
            fix="; ".join(trouble.fix for trouble in troubles),
            source=source,
            cause=", ".join(dict.fromkeys(trouble.cause for trouble in troubles)),
        )

    def _decide(self, found: Found, media: Media) -> ClipRow:
        source = media.source
        windows = self._plan_windows(found.kind, media)
        sizing = self._plan_size(source)
        troubles: list[Trouble] = []
        plan = windows.plan
        if plan.cause:
            fix = "copy or download the file again" if media.damaged else plan.fix
            troubles.append(Trouble(plan.reason, fix, "damaged" if media.damaged else plan.cause))
        if sizing.refusal:
            troubles.append(Trouble(*sizing.refusal))
        captions: tuple[str, ...] = ()
        try:
            captions = self._captions(found)
        except CaptionError as error:
            troubles.append(Trouble(error.reason, error.fix, error.cause))
        if troubles:
            return self.dropped(found.file, found.kind, source, troubles, media.remarks)
        samples = self._samples(found, source, captions, windows, sizing.plan)
        reason = self._reason(windows, sizing, source, media.remarks, len(captions))
        return ClipRow(self.rules.dataset, found.file, found.kind, "used", reason, "", source, samples)

    def _samples(
        self, found: Found, source: Source, captions: tuple[str, ...], windows: _Windows, size: SizePlan
    ) -> tuple[Sample, ...]:
        rules = self.rules
        count = len(windows.plan.windows)
        alternatives = count if rules.frames.frame_sampling == "random" else 1
        # By a list, not a generator: these lines run once per file of a dataset of any size.
        samples = [
            Sample(
                dataset=rules.dataset,
                file=found.file,
                kind=found.kind,
                captions=captions,
                source=source,
                frame_indices=indices,
                fps=rules.target_fps,
                size=size.size,
                resized=size.resized,
                crop=size.crop,
                repeats=rules.repeats,
                # With a single frame nothing would be left to learn from.
                is_i2v=rules.is_i2v and len(indices) > 1,
                frame_times=windows.times[number],
                window=number,
                alternatives=alternatives,
            )
            for number, indices in enumerate(windows.plan.windows)
        ]
        return tuple(samples)

    def _plan_windows(self, kind: Kind, media: Media) -> _Windows:
        # Clips of one encoder and length share their timestamps, and then everything that follows from them.
        still = kind == "image" or (media.source.codec == "gif" and media.source.frames == 1)
        key = (still, media.clock, media.end, media.source.fps, media.timed)
        known = self._windows.get(key)
        if known is None:
            times = media.times
            plan = STILL_PLAN if still else self._plan_frames(media)
            shown = tuple(tuple(times[i] for i in window) if media.timed else () for window in plan.windows)
            known = self._windows[key] = _Windows(plan, shown)
        return known

    def _plan_frames(self, media: Media) -> FramePlan:
        return decide_frames(
            media.times,
            end=media.end,
            source_fps=media.source.fps,
            target_fps=self.rules.target_fps,
            rules=self.rules.frames,
            legal_frames=self.rules.legal_frames,
        )

    def _plan_size(self, source: Source) -> _Sizing:
        key = (source.width, source.height, source.digest if self._size_varies else "")
        known = self._sizings.get(key)
        if known is None:
            displayed = (source.width, source.height)
            plan = plan_size(
                displayed,
                self.rules.size,
                multiple=self.rules.multiple,
                model_sizes=self.rules.model_sizes,
                digest=source.digest,
            )
            refusal = refuse_size(displayed, self.rules.size, plan=plan)
            known = self._sizings[key] = _Sizing(plan, refusal, tuple(size_remarks(displayed, plan)))
        return known

    def _captions(self, found: Found) -> tuple[str, ...]:
        rules = self.rules.captions
        if not rules.reads_text:
            return read_captions(found.file, rules)
        name = caption_name(found.name)
        text = self.memory.caption(name, found.caption)
        if text is None:
            text = read_text(found.file.with_suffix(".txt"))
            self.memory.remember_caption(name, found.caption, text)
        return read_captions(found.file, rules, text)

    def _reason(
        self, windows: _Windows, sizing: _Sizing, source: Source, media_remarks: tuple[str, ...], captions: int
    ) -> str:
        """What is taken of a file, and what a person may not expect of how it is trained."""
        size = sizing.plan.size
        parts = [
            f"{windows.plan.reason}, {source.width}x{source.height} -> {size[0]}x{size[1]}",
            f"asked: {self._asked}",
            *sizing.remarks,
            *media_remarks,
        ]
        if captions > 1:
            parts.append(f"{captions} captions, one per line (disable_multiline_split joins them)")
        if self.rules.is_i2v and len(windows.plan.indices) == 1:
            parts.append("a still has no next frame: trained as text to image, not as image to video")
        reason = "; ".join(parts)
        return self._reasons.setdefault(reason, reason)
