"""Render the validation prompts with the stock pipeline around the live transformer, and write the videos."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.cache.repair import rebuild_text
from tunerkit.cache.store import CacheEntryError
from tunerkit.config.prompts import ValidationPrompt
from tunerkit.devices import free_memory, is_out_of_memory
from tunerkit.errors import ConfigError, Problem
from tunerkit.families.rendering import Rendered, RenderRequest
from tunerkit.files import write_json
from tunerkit.validation.first_frames import FirstFrames, UnreadableFrameError
from tunerkit.validation.inputs import (
    FrameFromText,
    first_frame,
    prompts_of,
    starts_from_image,
    waveform,
)
from tunerkit.validation.previews import Previews
from tunerkit.validation.record import RECORD, facts_of, read_record, stem_of
from tunerkit.validation.vae_rescue import VaeRescue
from tunerkit.validation.video_files import read_mp4, side_by_side, write_mp4

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from tunerkit.cache.entries import Cache
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.facts import TextKind
    from tunerkit.training.engine import Engine

logger = logging.getLogger("tunerkit")
BASE = "step-0"
Job = tuple[ValidationPrompt, int, int, int]
"""A prompt to render, width, height and seed."""


@dataclass(frozen=True)
class Rendering:
    """One rendered video.

    Attributes:
        path: the mp4 file.
        prompt, nickname, seed: what was rendered; `nickname` is safe as a file name.
        step: optimizer steps done when it was rendered; 0 is the base model.
        frames, fps, size: number of frames, frames per second, (width, height).
        ema: whether the EMA's weights were used.
        comparison: mp4 with the base model's rendering on the left, if there is one.
    """

    path: Path
    prompt: str
    nickname: str
    seed: int
    step: int
    frames: int
    fps: float
    size: tuple[int, int]
    ema: bool = False
    comparison: Path | None = None


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """`"832x480,640x640"` (or `"480"` for a square) as (width, height) pairs.

    Raises:
        ValueError: if an entry is not a size.
    """
    sizes = []
    for entry in text.split(","):
        edges = entry.strip().lower().split("x")
        if len(edges) not in (1, 2) or not all(edge.isdigit() and int(edge) > 0 for edge in edges):
            raise ValueError(f"{entry.strip()!r} is not WIDTHxHEIGHT")
        sizes.append((int(edges[0]), int(edges[-1])))
    return sizes


def check_rendering(config: TrainConfig, family: Family) -> list[Problem]:
    """Problems of the validation settings that the model would only find after hours: sizes and frame counts."""
    problems = []
    try:
        sizes = parse_sizes(str(config.validation_resolution))
    except ValueError as error:
        example = "write sizes as WIDTHxHEIGHT, for example 832x480,640x640"
        return [Problem("validation_resolution", config.validation_resolution, str(error), example)]
    multiple = family.multiple(config)
    for width, height in sizes:
        if width % multiple or height % multiple:
            nearest = "x".join(str(max(multiple, round(edge / multiple) * multiple)) for edge in (width, height))
            problems.append(
                Problem(
                    "validation_resolution",
                    f"{width}x{height}",
                    f"{family.title} renders multiples of {multiple} only",
                    f"use {nearest}",
                )
            )
    frames = config.validation_num_video_frames
    if frames is not None and family.legal_frames(frames) != frames:
        below = family.legal_frames(frames)
        step = family.temporal_compression
        problems.append(
            Problem(
                "validation_num_video_frames",
                frames,
                f"{family.title} makes {step}k + 1 frames",
                f"use {below} or {below + step}",
            )
        )
    return problems


def seeds(config: TrainConfig) -> list[int]:
    """The seeds to render each prompt with."""
    first = config.seed if config.validation_seed is None else config.validation_seed
    return list(first) if isinstance(first, list) else [first + i for i in range(config.num_validation_images)]


class Renderer:
    """Renders all prompts of a run; text comes from the cache, the VAE is loaded for the time of one round.

    Args:
        config: resolved settings.
        family: the model family.
        cache: cache that holds the prompts' text.
        device: where to render.
        folder: the run's `validation` folder; videos go to `<folder>/step-<n>/`.
        samples: what `validation_using_datasets` takes first frames and sounds from, and previews their colours.

    Raises:
        UnreadableFrameError: somebody replaced a rendered first frame with a file that is no image.
    """

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        cache: Cache,
        device: torch.device,
        folder: Path,
        samples: Sequence[Sample] = (),
    ) -> None:
        self.config, self.family, self.cache, self.device, self.folder = config, family, cache, device, folder
        self._vae = VaeRescue(config, family, device)
        self.prompts = prompts_of(config, family, samples)
        self.previews = Previews(config, family, cache, samples)
        self.first_frames = FirstFrames(
            folder,
            {
                stem_of(*job): facts_of(config, *job)
                for job in self._jobs(self.prompts)
                if isinstance(job[0], FrameFromText)
            },
        )

    @property
    def has_images(self) -> bool:
        """Whether any prompt starts from a first frame."""
        return any(map(starts_from_image, self.prompts))

    def has_base(self) -> bool:
        """Whether the base model's videos are there, rendered with today's prompts and settings."""
        made = read_record(self.folder / BASE)
        return all(made.get(f"{stem_of(*job)}.mp4") == self._facts(job) for job in self._jobs(self.prompts))

    def round(self, engine: Engine, step: int) -> list[Rendering]:
        """Render every prompt, size and seed; with EMA as `ema_validation` says.

        Out of memory, and an input that cannot be read, are reported and end the round with what was rendered so far.
        """
        if not self.prompts:
            return []
        renderings: list[Rendering] = []
        self.previews.prepare(self.folder)
        engine.weights.zero_gradients()  # of the last step: nobody needs them any more
        free_memory()
        vae = None
        try:
            vae = self._vae.load()
            for ema in self._ema_modes(engine, step):
                with engine.rendering(ema=ema) as transformer:
                    for rendering in self._render_all(transformer, vae, step, ema):
                        renderings.append(rendering)
        except (UnreadableFrameError, ConfigError) as error:  # an input that changed since the run began
            logger.warning("validation at step %d ended early; training goes on. %s", step, error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning(
                "validation at step %d ran out of memory (%s); training goes on. Lower validation_resolution or "
                "validation_num_video_frames, or set vae_enable_temporal_roll or vae_enable_tiling",
                step,
                str(error).splitlines()[0] if str(error) else type(error).__name__,
            )
        finally:
            vae = None
            free_memory()
        return renderings

    def _ema_modes(self, engine: Engine, step: int) -> list[bool]:
        if engine.ema is None or step == 0:
            return [False]
        return {"none": [False], "ema_only": [True], "comparison": [False, True]}[self.config.ema_validation]

    def _render_all(self, transformer: Any, vae: Any, step: int, ema: bool) -> Iterator[Rendering]:
        self._make_first_frames(transformer, vae, step)
        for with_image in (False, True):
            prompts = [prompt for prompt in self.prompts if starts_from_image(prompt) == with_image]
            if not prompts:
                continue
            pipeline = self.family.build_pipeline(self.config, transformer, vae, image_to_video=with_image)
            for prompt, width, height, seed in self._jobs(prompts):
                request = self._request(prompt, width, height, seed)
                path = self._path((prompt, width, height, seed), step, ema)
                request = replace(request, watch=self.previews.watcher(path, step, request))
                rendered = self.family.render(self.config, pipeline, request)
                yield self._write(rendered, prompt, request, step, ema)

    def _make_first_frames(self, transformer: Any, vae: Any, step: int) -> None:
        """Render the first frames that are due, all before the pipeline that starts from them is built."""
        due = [job for job in self._jobs(self.prompts) if self.first_frames.is_due(stem_of(*job))]
        if not due:
            return
        self.first_frames.announce(len(due))
        pipeline = self.family.build_pipeline(self.config, transformer, vae, image_to_video=False)
        for prompt, *place in due:
            text_only = ValidationPrompt(prompt.nickname, prompt.prompt, audio=prompt.audio)
            rendered = self.family.render(self.config, pipeline, self._request(text_only, *place))
            self.first_frames.keep(stem_of(prompt, *place), rendered.frames[0], step)

    def _jobs(self, prompts: Sequence[ValidationPrompt]) -> Iterator[Job]:
        for prompt in prompts:
            for width, height in parse_sizes(str(self.config.validation_resolution)):
                for seed in seeds(self.config):
                    yield prompt, width, height, seed

    def _facts(self, job: Job) -> dict[str, Any]:
        """Everything beside the trained weights that shapes a video: what renderings.json records of it."""
        return {**facts_of(self.config, *job), **self.first_frames.source(stem_of(*job))}

    def _request(self, prompt: ValidationPrompt, width: int, height: int, seed: int) -> RenderRequest:
        config = self.config
        frames = int(config.validation_num_video_frames or 1)
        fps = float(config.framerate or self.family.framerate)
        return RenderRequest(
            text=self._text(prompt.prompt, "positive"),
            negative_text=self._text(config.validation_negative_prompt or "", "negative"),
            width=width,
            height=height,
            frames=frames,
            steps=int(config.validation_num_inference_steps or 1),
            guidance=float(config.validation_guidance or 1.0),
            seed=seed,
            fps=fps,
            audio_guidance=config.validation_audio_guidance,
            image=self._image(prompt, width, height, seed),
            sound=waveform(prompt, frames / fps, self.family.sound),
        )

    def _image(self, prompt: ValidationPrompt, width: int, height: int, seed: int) -> Image.Image | None:
        """The first frame, given or rendered before; None for text to video."""
        if isinstance(prompt, FrameFromText):
            return self.first_frames.read(stem_of(prompt, width, height, seed), width, height)
        return first_frame(prompt, width, height)

    def _text(self, text: str, kind: TextKind) -> dict[str, torch.Tensor]:
        """The cached tensors of a text; an entry that is damaged or gone is made anew."""
        try:
            return self.cache.text(text, kind)
        except CacheEntryError:
            return rebuild_text(self.config, self.family, self.cache, text, kind)

    def _path(self, job: Job, step: int, ema: bool) -> Path:
        """The file of a video."""
        return self.folder / f"step-{step}" / f"{stem_of(*job)}{'-ema' if ema else ''}.mp4"

    def _write(
        self, rendered: Rendered, prompt: ValidationPrompt, request: RenderRequest, step: int, ema: bool
    ) -> Rendering:
        job = (prompt, request.width, request.height, request.seed)
        path = self._path(job, step, ema)
        _write(path, rendered.frames, rendered, request.fps)
        record = read_record(path.parent)
        write_json(path.parent / RECORD, {**record, path.name: self._facts(job)})
        return Rendering(
            path=path,
            prompt=prompt.prompt,
            nickname=prompt.nickname,
            seed=request.seed,
            step=step,
            frames=len(rendered.frames),
            fps=request.fps,
            size=(request.width, request.height),
            ema=ema,
            comparison=None if step == 0 else self._beside_base(path, rendered, job, request.fps, step),
        )

    def _beside_base(self, path: Path, rendered: Rendered, job: Job, fps: float, step: int) -> Path | None:
        """`<video>-beside-base.mp4`: the base model's rendering left, this one right, with this one's sound.

        None where the base model was not rendered, or with another prompt or other settings: that would compare the
        settings and not the training.
        """
        base = self.folder / BASE / f"{stem_of(*job)}.mp4"
        if not base.is_file():
            return None
        if read_record(base.parent).get(base.name) != self._facts(job):
            logger.warning(
                "%s was rendered with other validation settings or from another first frame; nothing is put beside it",
                base,
            )
            return None
        both = side_by_side(read_mp4(base), rendered.frames, ("base model", f"step {step}"))
        return _write(path.with_name(f"{path.stem}-beside-base.mp4"), both, rendered, fps)


def _write(path: Path, frames: np.ndarray, rendered: Rendered, fps: float) -> Path:
    """`frames` with the sound of what was rendered."""
    sound = rendered.sound
    return write_mp4(path, frames, fps, None if sound is None else sound.T, rendered.sound_rate)
