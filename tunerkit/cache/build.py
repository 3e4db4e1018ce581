"""Encode captions, then clips, once: the only time text encoder and VAE are in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunerkit.families as families
from tunerkit.cache.entries import Cache
from tunerkit.cache.store import Store
from tunerkit.config.prompts import validation_prompts
from tunerkit.devices import free_memory, run_device
from tunerkit.errors import TunerkitError
from tunerkit.project import resolve

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family, TextKind

logger = logging.getLogger("tunerkit")

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total) after every entry."""


@dataclass(frozen=True)
class CacheFailure:
    """A clip that could not be encoded, and why. It is left out of the training."""

    file: Path
    reason: str


@dataclass
class CacheResult:
    """What `build_cache` did. `reused` entries were there already."""

    texts_encoded: int = 0
    texts_reused: int = 0
    latents_encoded: int = 0
    latents_reused: int = 0
    failures: list[CacheFailure] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"captions: {self.texts_encoded} encoded, {self.texts_reused} already cached",
            f"clips: {self.latents_encoded} encoded, {self.latents_reused} already cached, "
            f"{len(self.failures)} failed ({self.seconds:.1f} s)",
        ]
        return "\n".join([*lines, *(f"  {failure.file}: {failure.reason}" for failure in self.failures)])


def build_cache(
    config: TrainConfig, *, report: DatasetReport | None = None, progress: Progress | bool = True
) -> CacheResult:
    """Encode every caption, prompt and clip that is not cached yet; may be interrupted and called again.

    One component is in memory at a time: first the text encoder, then the VAE. Each entry is written as soon as it is
    ready. A clip that cannot be encoded is reported and skipped.

    Args:
        config: the run's settings.
        report: the result of `inspect_dataset`, if it is at hand.
        progress: True for a progress bar, False for none, or a callable `(phase, done, total)`.

    Raises:
        ConfigError, DatasetError, ModelError: if nothing can be encoded at all.
    """
    from tunerkit.data.inspect import inspect_dataset

    started = time.perf_counter()
    config = resolve(config)
    family = families.get(str(config.model_family))
    samples = (report or inspect_dataset(config)).require_samples()
    family.check_checkpoint(config)
    cache = Cache(config, family)
    for store in (cache.text_store, *cache.latent_stores.values()):
        _prepare_store(store)
    result = CacheResult()
    _encode_texts(config, family, cache, needed_texts(config, samples), result, progress)
    _encode_clips(config, family, cache, samples, result, progress)
    result.seconds = time.perf_counter() - started
    return result


def needed_texts(config: TrainConfig, samples: Iterable[Sample]) -> list[tuple[str, TextKind]]:
    """Every text that training and validation will ask for, each once, in a fixed order."""
    needed: dict[tuple[str, TextKind], None] = {}
    for sample in samples:
        for caption in sample.captions:
            needed[caption, "positive"] = None
    if config.caption_dropout_probability > 0:
        needed["", "negative"] = None
    prompts = [] if config.validation_disable else validation_prompts(config)
    for entry in prompts:
        needed[entry.prompt, "positive"] = None
    if prompts:
        needed[config.validation_negative_prompt or "", "negative"] = None
    return list(needed)


def _prepare_store(store: Store) -> None:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        store.clear_leftovers()
    except OSError as error:
        raise TunerkitError(
            f"cache folder {store.folder} cannot be written ({error.strerror}). Fix: set cache_dir (or the dataset's "
            "cache_dir / cache_dir_vae) to a folder you may write to"
        ) from error


def _encode_texts(
    config: TrainConfig,
    family: Family,
    cache: Cache,
    texts: Sequence[tuple[str, TextKind]],
    result: CacheResult,
    progress: Progress | bool,
) -> None:
    missing = [entry for entry in texts if not cache.has_text(*entry)]
    result.texts_reused = len(texts) - len(missing)
    if not missing:
        return
    encoder = family.load_text_encoder(config, run_device(config))
    try:
        with _Bar("captions", len(missing), progress) as bar:
            for kind in ("positive", "negative"):
                of_kind = [text for text, wanted in missing if wanted == kind]
                for chunk in _chunks(of_kind, config.text_encoder_batch_size):
                    for text, tensors in zip(chunk, family.encode_text(encoder, chunk, kind, config), strict=True):
                        cache.put_text(text, kind, tensors)
                        result.texts_encoded += 1
                        bar.advance()
    finally:
        del encoder
        free_memory()


def _encode_clips(
    config: TrainConfig,
    family: Family,
    cache: Cache,
    samples: Sequence[Sample],
    result: CacheResult,
    progress: Progress | bool,
) -> None:
    # Two files with the same content share one entry of their dataset.
    missing = {
        (sample.dataset, cache.namer.latents(sample)): sample for sample in samples if not cache.has_latents(sample)
    }
    result.latents_reused = len(samples) - len(missing)
    if not missing:
        return
    by_bucket: dict[str, list[Sample]] = {}
    for sample in missing.values():
        by_bucket.setdefault(sample.bucket, []).append(sample)
    vae = family.load_vae(config, run_device(config))
    try:
        with _Bar("clips", len(missing), progress) as bar:
            for bucket in by_bucket.values():
                for chunk in _chunks(bucket, config.vae_batch_size):
                    _encode_chunk(family, vae, cache, chunk, result)
                    bar.advance(len(chunk))
    finally:
        del vae
        free_memory()


def _encode_chunk(family: Family, vae: Any, cache: Cache, chunk: Sequence[Sample], result: CacheResult) -> None:
    """Decode and encode some clips of one bucket; what fails is recorded by file, the rest is written."""
    import torch

    from tunerkit.data.decode import decode

    pixels, ready = [], []
    for sample in chunk:
        try:
            frames = torch.from_numpy(decode(sample))
        except Exception as error:  # one bad file, whatever the decoder makes of it, must not end the job
            _fail(result, sample, str(error))
            continue
        pixels.append(frames.permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0))
        ready.append(sample)
    if not ready:
        return
    try:
        latents = family.encode_latents(vae, torch.stack(pixels))
    except torch.OutOfMemoryError:
        free_memory()
        for sample in ready:
            _fail(
                result,
                sample,
                "out of GPU memory while encoding; set vae_batch_size = 1 or vae_enable_tiling",
            )
        return
    for sample, latent in zip(ready, latents, strict=True):
        if not torch.isfinite(latent).all():
            _fail(result, sample, "the VAE made NaN or infinite latents; set vae_dtype = fp32")
            continue
        cache.put_latents(sample, latent)
        result.latents_encoded += 1


def _fail(result: CacheResult, sample: Sample, reason: str) -> None:
    logger.warning("%s is left out: %s", sample.file, reason)
    result.failures.append(CacheFailure(sample.file, reason))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), max(1, size)):
        yield items[start : start + max(1, size)]


class _Bar:
    """A tqdm bar with ETA, a callable, or nothing."""

    def __init__(self, phase: str, total: int, progress: Progress | bool) -> None:
        self._phase, self._total, self._done = phase, total, 0
        self._callback = progress if callable(progress) else None
        self._bar = None
        if progress is True:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"encoding {phase}", unit="", dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        if self._callback is not None:
            self._callback(self._phase, self._done, self._total)
