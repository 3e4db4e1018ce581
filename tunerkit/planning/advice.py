"""What to change so that a run fits a GPU: first what costs nothing but some time, frames and resolution last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunerkit import families
from tunerkit.errors import ConfigError, Problem
from tunerkit.planning.planner import plan
from tunerkit.planning.result import GIB, Plan, size

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

WORTH = 0.03
"""Share of a phase's peak that a change has to save."""
SHARES = tuple(eighths / 8 for eighths in range(1, 9))
"""Of the blocks, as steps of swapping; all of them are planned from one trace."""
FRAMES_SEEN = (4, 1)
"""Steps of frames that the image encoder looks at at a time."""
SHORTER, SMALLER = (0.61, 0.37), (0.75, 0.5)
"""Steps of frames, and of the edges of a picture."""
Settings = Mapping[str, Any]
MEANINGS: Mapping[str, str] = {
    "text_encoder_from_ram": "the text encoder's layers come from RAM one by one, which takes longer once",
    "one_clip_encoded": "clips are encoded one at a time",
    "fewer_frames_seen": "the image encoder looks at fewer frames at a time, with the same result",
    "vae_in_parts": "the VAE works in pieces of time, with the same result",
    "vae_in_tiles": "the VAE works in overlapping tiles, and latents change a little",
    "checkpointing": "activations are computed twice: a step takes a third longer",
    "one_clip_trained": "clips go through the model one at a time; a step learns from as many",
    "ema_in_ram": "the EMA's weights lie in RAM",
    "bf16_optimizer": "the optimizer works in bfloat16 with compensation",
    "blocks_from_ram": "blocks come from RAM while others compute: slower where the link is slow",
    "quantised": "the frozen weights are rounded, and unpacked for every product",
    "layers_from_ram": "all layers come from RAM one by one: much slower",
    "shorter_validation": "validation videos are shorter",
    "no_validation": "nothing is rendered while training",
    "shorter_clips": "clips are shorter",
    "smaller_clips": "clips are smaller",
}
"""What each kind of change does, and what it costs, by its key."""


@dataclass(frozen=True)
class Change:
    """A change of settings that saves memory.

    Attributes:
        key: what kind of change it is, one of `MEANINGS`.
        settings: for `config.changed(**settings)`.
        phase: the phase that did not fit before.
        saved: bytes that it saves there.
        plan: with this change and those before.
    """

    key: str
    settings: Settings
    phase: str
    saved: int
    plan: Plan

    @property
    def meaning(self) -> str:
        """What it does, and what it costs, in English."""
        return MEANINGS[self.key]

    @property
    def fits(self) -> bool:
        """Whether the run fits with this change and those before."""
        return bool(self.plan.fits)

    def __str__(self) -> str:
        named = ", ".join(f"{name} = {_written(value)}" for name, value in self.settings.items())
        return f"{named}: {size(self.saved)} less in {self.phase}; {self.meaning}"


@dataclass(frozen=True)
class _Rung:
    """Settings that are alternatives, the mildest first; the first one that suffices is taken, else the last."""

    key: str
    choices: tuple[Settings, ...]


def autofit(config: TrainConfig, vram_gib: float | None = None) -> TrainConfig:
    """The settings with the fewest changes that fit a GPU of `vram_gib` GiB, or the GPU found; see `Plan.changes`.

    Raises:
        ConfigError: a setting is wrong, no size is named and no GPU found, or nothing makes the run fit.
    """
    found = plan(config, vram_gib)
    if found.vram is None:
        message, fix = "nothing is named, and no GPU was found here", "name the memory in GiB, for example 24"
        raise ConfigError([Problem("vram_gib", None, message, fix)])
    if found.fits:
        return found.config
    changes = found.changes
    last = changes[-1].plan if changes else found
    if not last.fits:
        tried = "; ".join(str(change) for change in changes) or "no setting is left that saves memory"
        raise ConfigError(
            [
                Problem(
                    "vram_gib",
                    vram_gib,
                    f"is too little: {last.peak / GIB:.1f} GiB of tensors are left with all that saves memory "
                    f"({tried})",
                    "use a GPU with more memory, or a smaller model",
                )
            ]
        )
    return last.config


def changes(first: Plan) -> list[Change]:
    """The changes that make a plan fit; see `Plan.changes`."""
    found: list[Change] = []
    now, used = first, set[str]()
    while now.fits is False and (change := _next(now, used)) is not None:
        found.append(change)
        now = change.plan
    return _needed(first, found) if now.fits else found


def _needed(first: Plan, found: list[Change]) -> list[Change]:
    """Without those that others have made needless: what costs most is tried first."""
    for one in reversed(found[:-1]):
        fewer = [other for other in found if other is not one]
        again = _one_by_one(first, fewer)
        if again and again[-1].fits:
            found = again
    return found


def _one_by_one(first: Plan, wanted: list[Change]) -> list[Change]:
    """The same changes, made one after the other; empty where they do not go together."""
    made: list[Change] = []
    now = first
    for one in wanted:
        try:
            after = _changed(now, one.settings)
        except ConfigError:
            return []
        made.append(replace(one, saved=_peak(now, one.phase) - _peak(after, one.phase), plan=after))
        now = after
    return made


def _changed(now: Plan, settings: Settings) -> Plan:
    """The plan of changed settings.

    Raises:
        ConfigError: they do not go together.
    """
    # Clips that are cut in another way are looked at again.
    recut = any(name.startswith("datasets.") for name in settings)
    vram = None if now.vram is None else now.vram / GIB
    card = now.gpu.name if now.gpu else None
    return plan(now.config.changed(**settings), vram, samples=None if recut else now.samples, gpu=card)


def _next(now: Plan, used: set[str]) -> Change | None:
    """The next change for the phase that takes the most; what was looked at is added to `used`."""
    phase = now.largest_phase
    for rung in _ladder(now, phase.name):
        if rung.key in used:
            continue
        used.add(rung.key)
        if (change := _best(now, rung, phase.name)) is not None:
            return change
    return None


def _best(now: Plan, rung: _Rung, phase: str) -> Change | None:
    """The mildest choice that makes the phase fit, else the one that saves most; None where none is worth it."""
    before, best = _peak(now, phase), None
    for settings in rung.choices:
        try:
            after = _changed(now, settings)
        except ConfigError:  # does not go together with another setting
            continue
        saved = before - _peak(after, phase)
        if saved > max(WORTH * before, best.saved if best else 0):
            best = Change(rung.key, settings, phase, saved, after)
            if after.room is not None and _peak(after, phase) <= after.room:
                return best
    return best


def _peak(now: Plan, phase: str) -> int:
    """Of a phase; 0 where the run has no such phase any more."""
    return next((one.peak for one in now.phases if one.name == phase), 0)


def _ladder(now: Plan, phase: str) -> Iterator[_Rung]:
    """What helps a phase, in order of cost."""
    config = now.config
    if phase == "text encoding":
        offload = {"group_offload_text_encoder": True}
        yield _Rung("text_encoder_from_ram", (offload,))
        return
    if phase == "feature encoding":
        yield _Rung("fewer_frames_seen", tuple({"crepa_encoder_frames_batch_size": count} for count in FRAMES_SEEN))
        return
    if phase == "clip encoding" and config.vae_batch_size > 1:
        yield _Rung("one_clip_encoded", ({"vae_batch_size": 1},))
    if phase in ("clip encoding", "validation"):
        yield _Rung("vae_in_parts", ({"vae_enable_patch_conv": True}, {"vae_enable_temporal_roll": True}))
        yield _Rung("vae_in_tiles", ({"vae_enable_tiling": True},))
    if phase != "clip encoding":
        yield from _of_training(config, now.blocks)
    if phase == "validation":
        yield from _of_rendering(config)
    if phase == "clip encoding" or now.room is None or _peak(now, "checkpoint") <= now.room:
        yield from _less_video(config)  # else what stays on the GPU between two steps is too much already


def _of_training(config: TrainConfig, blocks: int) -> Iterator[_Rung]:
    if not config.gradient_checkpointing:
        yield _Rung("checkpointing", ({"gradient_checkpointing": True},))
    if config.train_batch_size > 1:
        steps = config.gradient_accumulation_steps * config.train_batch_size
        one = {"train_batch_size": 1, "gradient_accumulation_steps": steps}
        yield _Rung("one_clip_trained", (one,))
    if config.use_ema and config.ema_device == "accelerator":
        yield _Rung("ema_in_ram", ({"ema_device": "cpu"},))
    if config.model_type == "full":
        yield _Rung("bf16_optimizer", ({"optimizer": "adamw_bf16"},))
        return
    if not config.enable_group_offload:
        counts = [max(1, math.ceil(share * blocks) - (share == 1)) for share in SHARES]
        swaps = tuple({"musubi_blocks_to_swap": count} for count in counts if count > config.musubi_blocks_to_swap)
        yield _Rung("blocks_from_ram", swaps)
    if config.base_model_precision == "no_change":
        kinds = tuple({"base_model_precision": name} for name in ("int8", "nf4"))
        yield _Rung("quantised", kinds)
    if config.group_offload_type != "leaf_level" or not config.enable_group_offload:
        leaf = {"musubi_blocks_to_swap": 0, "enable_group_offload": True, "group_offload_type": "leaf_level"}
        yield _Rung("layers_from_ram", (leaf,))


def _of_rendering(config: TrainConfig) -> Iterator[_Rung]:
    family, frames = families.get(str(config.model_family)), int(config.validation_num_video_frames or 1)
    fewer = dict.fromkeys(family.legal_frames(int(frames * share)) for share in SHORTER)
    choices = tuple({"validation_num_video_frames": count} for count in fewer if 1 < count < frames)
    yield _Rung("shorter_validation", choices)
    if config.train_batch_size == 1:
        yield _Rung("no_validation", ({"validation_disable": True},))


def _less_video(config: TrainConfig) -> Iterator[_Rung]:
    """Shorter clips, then smaller ones."""
    family = families.get(str(config.model_family))
    clips = [(one, one.video.num_frames) for one in config.media_datasets if one.video.num_frames]
    most = max((frames for _, frames in clips), default=0)
    counts = dict.fromkeys(family.legal_frames(int(most * share)) for share in SHORTER)
    shorter = tuple(
        {f"datasets.{one.id}.video.num_frames": count for one, frames in clips if frames > count}
        for count in counts
        if 1 < count < most
    )
    yield _Rung("shorter_clips", shorter)
    yield _Rung("smaller_clips", tuple(_smaller(config, share) for share in SMALLER))


def _smaller(config: TrainConfig, share: float) -> Settings:
    """Every dataset's resolution with edges that are `share` times as long."""
    settings: dict[str, Any] = {}
    for one in config.media_datasets:
        size, kind = config.resolution_of(one)
        if size is None or kind == "model":
            areas = families.get(str(config.model_family)).model_sizes(config)
            size, kind = max(width * height for width, height in areas) ** 0.5, "pixel_area"
            settings[f"datasets.{one.id}.resolution_type"] = kind
        smaller = round(size * share**2, 2) if kind == "area" else round(size * share / 32) * 32
        settings[f"datasets.{one.id}.resolution"] = smaller
    return settings


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
