"""Encode captions, then clips, once: the only time text encoder and VAE are in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tunerkit.families as families
from tunerkit.cache.claims import Claims, divided
from tunerkit.cache.decode_ahead import DecodeAhead, pixel_bytes
from tunerkit.cache.encode import (
    EncodingError,
    LatentEncoder,
    encode_texts,
    load_where_it_fits,
    mask_weights,
)
from tunerkit.cache.entries import Cache
from tunerkit.cache.progress import Progress, ProgressBar
from tunerkit.cache.store import CacheEntryError, Store
from tunerkit.cache.write_behind import WriteBehind, cannot_write
from tunerkit.config.prompts import validation_prompts
from tunerkit.devices import free_memory, run_device
from tunerkit.project import resolve

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family, TextKind

__all__ = ["CacheFailure", "CacheResult", "Progress", "build_cache", "needed_texts"]

logger = logging.getLogger("tunerkit")
Item = TypeVar("Item")

POLL_SECONDS = 0.5
"""Between looks at entries that other processes are making."""


@dataclass(frozen=True)
class CacheFailure:
    """A clip that could not be encoded, and why. It is left out of the training."""

    file: Path
    reason: str


@dataclass
class CacheResult:
    """What `build_cache` did. `reused` entries were there already, or another process made them meanwhile.

    `fallbacks` counts the clips that were encoded in less memory than configured, by how ("tiled", "cpu").
    """

    texts_encoded: int = 0
    texts_reused: int = 0
    latents_encoded: int = 0
    latents_reused: int = 0
    failures: list[CacheFailure] = field(default_factory=list)
    seconds: float = 0.0
    fallbacks: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"captions: {self.texts_encoded} encoded, {self.texts_reused} already cached",
            f"clips: {self.latents_encoded} encoded, {self.latents_reused} already cached, "
            f"{len(self.failures)} failed ({self.seconds:.1f} s)",
        ]
        if self.fallbacks:
            ways = ", ".join(f"{count} {how}" for how, count in sorted(self.fallbacks.items()))
            lines.append(f"encoded otherwise than configured, because memory was short: {ways}")
        return "\n".join([*lines, *(f"  {failure.file}: {failure.reason}" for failure in self.failures)])


def build_cache(
    config: TrainConfig, *, report: DatasetReport | None = None, progress: Progress | bool = True
) -> CacheResult:
    """Encode every caption, prompt and clip that is not cached yet; may be interrupted and called again.

    One component is in memory at a time: first the text encoder, then the VAE. Each entry is written as soon as it is
    ready. Clips of evaluation datasets are encoded too. A clip that cannot be encoded is reported and skipped; with
    `delete_problematic_images`, one that cannot be decoded comes on the quarantine list. Several processes, on one
    machine or several, may fill the same cache at the same time: they share the work.

    Whether an entry is there is all that is asked here; a damaged one is found when it is read, and made anew then.

    Args:
        config: the run's settings.
        report: the result of `inspect_dataset`, if it is at hand.
        progress: True for a progress bar, False for none, or a callable `(phase, done, total)`.

    Raises:
        ConfigError, DatasetError, ModelError: if nothing can be encoded at all.
        TunerkitError: a cache folder cannot be written; what was written before is whole.
    """
    from tunerkit.data.inspect import inspect_dataset

    started = time.perf_counter()
    config = resolve(config)
    family = families.get(str(config.model_family))
    samples = [*(report or inspect_dataset(config)).require_samples()]
    if config.eval_datasets:
        samples += inspect_dataset(config, purpose="eval").require_samples()
    family.check_checkpoint(config)
    cache = Cache(config, family)
    stores = [cache.text_store, *cache.latent_stores.values()]
    for store in stores:
        _prepare_store(store)
    result = CacheResult()
    with Claims([store.folder for store in stores]) as claims:
        filling = _Filling(config, family, cache, claims, result, progress)
        filling.texts(needed_texts(config, samples))
        filling.clips(samples)
    filling.quarantine()
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
        raise cannot_write(store.folder, error) from error


class _Filling:
    """One call of `build_cache`: what its steps share."""

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        cache: Cache,
        claims: Claims,
        result: CacheResult,
        progress: Progress | bool,
    ) -> None:
        self._config, self._family, self._cache, self._claims = config, family, cache, claims
        self._result, self._progress = result, progress
        self._batch_sizes = {dataset.id: dataset.vae_batch_size or config.vae_batch_size for dataset in config.datasets}
        self._at_fault: list[CacheFailure] = []

    # Captions --------------------------------------------------------------------------------------------------

    def texts(self, texts: Sequence[tuple[str, TextKind]]) -> None:
        """Encode the texts that are missing; the text encoder is loaded only if there is one."""
        cache, result = self._cache, self._result
        missing = [entry for entry in texts if not cache.has_text(*entry)]
        result.texts_reused = len(texts) - len(missing)
        if not missing:
            return
        encoder: Any = None
        try:
            with ProgressBar("captions", len(missing), self._progress) as bar, WriteBehind() as writer:

                def found(_: tuple[str, TextKind]) -> None:
                    result.texts_reused += 1
                    bar.advance()

                batch: list[tuple[str, TextKind]] = []
                source = divided(missing, self._claims, self._text_place, lambda e: cache.has_text(*e), found)
                for entry in _until_done(source, writer):
                    full = len(batch) >= self._config.text_encoder_batch_size
                    if batch and (entry is None or full or batch[0][1] != entry[1]):
                        encoder = self._load_text_encoder() if encoder is None else encoder
                        self._encode_texts(encoder, batch, writer, bar)
                        batch = []
                    if entry is not None:
                        batch.append(entry)
        finally:
            del encoder
            free_memory()

    def _load_text_encoder(self) -> Any:
        def load(device: torch.device) -> Any:
            return self._family.load_text_encoder(self._config, device)

        return load_where_it_fits(load, run_device(self._config), "the text encoder")[0]

    def _encode_texts(
        self, encoder: Any, batch: Sequence[tuple[str, TextKind]], writer: WriteBehind, bar: ProgressBar
    ) -> None:
        kind = batch[0][1]
        texts = [text for text, _ in batch]
        encoded = encode_texts(encoder, self._family, self._config, texts, kind)
        for text, tensors in zip(texts, encoded, strict=True):

            def write(text: str = text, tensors: dict[str, torch.Tensor] = tensors) -> None:
                self._cache.put_text(text, kind, tensors)
                self._claims.release(*self._text_place((text, kind)))

            def outcome(error: Exception | None) -> None:
                if error is not None:
                    raise error
                self._result.texts_encoded += 1
                bar.advance()

            writer.put(self._cache.text_store.folder, write, outcome)

    def _text_place(self, entry: tuple[str, TextKind]) -> tuple[Path, str]:
        return self._cache.text_store.folder, self._cache.namer.text(*entry)

    # Clips -----------------------------------------------------------------------------------------------------

    def clips(self, samples: Sequence[Sample]) -> None:
        """Encode the clips that are missing; the VAE is loaded only if there is one."""
        cache, result = self._cache, self._result
        self._masks([sample for sample in samples if sample.mask and cache.has_latents(sample)])
        # Two files with the same content share one entry of their dataset.
        missing = {self._clip_place(sample): sample for sample in cache.without_latents(samples)}
        result.latents_reused = len(samples) - len(missing)
        if not missing:
            return
        # Small ones first: where memory gets short, all that follow are at least as large.
        ordered = sorted(missing.values(), key=lambda sample: (pixel_bytes(sample), sample.bucket, sample.dataset))
        encoder = LatentEncoder(self._config, self._family)
        try:
            with ProgressBar("clips", len(missing), self._progress) as bar, WriteBehind() as writer:

                def found(_: Sample) -> None:
                    result.latents_reused += 1
                    bar.advance()

                source = divided(ordered, self._claims, self._clip_place, cache.has_latents, found)
                with DecodeAhead(source, max(self._batch_sizes.values())) as decoded:
                    self._encode(encoder, decoded, writer, bar)
        finally:
            encoder.close()

    def _encode(self, encoder: LatentEncoder, decoded: DecodeAhead, writer: WriteBehind, bar: ProgressBar) -> None:
        batch: list[tuple[Sample, torch.Tensor]] = []
        for item in _until_done(iter(decoded), writer):
            sample, pixels = item or (None, None)
            if sample is not None and isinstance(pixels, Exception):
                self._fail(sample, _reason(pixels), at_fault=not isinstance(pixels, MemoryError))
                bar.advance()
                continue
            if batch and (sample is None or not _same_batch(batch[0][0], sample)):
                self._encode_batch(encoder, batch, writer, bar)
                batch = []
            if sample is not None and not isinstance(pixels, Exception | None):
                batch.append((sample, pixels))
                if len(batch) >= self._batch_sizes[sample.dataset]:
                    self._encode_batch(encoder, batch, writer, bar)
                    batch = []

    def _encode_batch(
        self,
        encoder: LatentEncoder,
        batch: Sequence[tuple[Sample, torch.Tensor]],
        writer: WriteBehind,
        bar: ProgressBar,
    ) -> None:
        """Encode clips of one bucket and hand them to the writer; what fails is recorded by file."""
        for (sample, _), encoded in zip(batch, encoder.encode([pixels for _, pixels in batch]), strict=True):
            if isinstance(encoded, EncodingError):
                self._fail(sample, str(encoded), at_fault=encoded.clip_at_fault)
                bar.advance()
            else:
                self._write(sample, *encoded, writer, bar)

    def _write(
        self, sample: Sample, latents: torch.Tensor, fallback: str, writer: WriteBehind, bar: ProgressBar
    ) -> None:
        def write() -> None:
            self._cache.put_latents(sample, latents, fallback=fallback)
            self._claims.release(*self._clip_place(sample))
            self._write_mask(sample, latents.shape)

        def outcome(error: Exception | None) -> None:
            bar.advance()
            if error is not None:
                self._fail(sample, str(error), at_fault=False)
                return
            self._result.latents_encoded += 1
            if fallback:
                self._result.fallbacks[fallback] = self._result.fallbacks.get(fallback, 0) + 1

        writer.put(self._cache.latent_stores[sample.dataset].folder, write, outcome)

    def _clip_place(self, sample: Sample) -> tuple[Path, str]:
        return self._cache.latent_stores[sample.dataset].folder, self._cache.namer.latents(sample)

    # Masks -----------------------------------------------------------------------------------------------------

    def _masks(self, samples: Iterable[Sample]) -> None:
        """Masks of clips that are cached already, but without them."""
        for sample in samples:
            if self._cache.has_mask(sample):
                continue
            try:
                self._write_mask(sample, self._cache.latents(sample).shape)
            except CacheEntryError:
                continue  # damaged and removed now: the clip is encoded again, with its mask
            except OSError as error:
                raise cannot_write(self._cache.latent_stores[sample.dataset].folder, error) from error
            except Exception as error:  # one bad mask must not end the job
                self._fail(sample, str(error), at_fault=False)

    def _write_mask(self, sample: Sample, latents_shape: Sequence[int]) -> None:
        if sample.mask is not None and not self._cache.has_mask(sample):
            self._cache.put_mask(sample, mask_weights(self._family, sample, latents_shape))

    # Failures --------------------------------------------------------------------------------------------------

    def _fail(self, sample: Sample, reason: str, *, at_fault: bool) -> None:
        """Record a clip that is left out, once per file; `at_fault`: no setting would help."""
        self._claims.release(*self._clip_place(sample))
        failure = CacheFailure(sample.file, reason)
        if sample.file in {known.file for known in self._result.failures}:
            return
        logger.warning("%s is left out: %s", sample.file, reason)
        self._result.failures.append(failure)
        if at_fault:
            self._at_fault.append(failure)

    def quarantine(self) -> None:
        """Put clips that cannot be decoded on the quarantine list, if that is wanted; the list deletes them if told to.

        Clips that failed for want of memory, for their mask or for a setting are not: they would stay out for ever.
        """
        if not self._config.delete_problematic_images or not self._at_fault:
            return
        from tunerkit.data.quarantine import Quarantine

        listed = Quarantine.of(self._config)
        try:
            for failure in self._at_fault:
                listed.add(failure.file, failure.reason)
        except OSError as error:
            raise cannot_write(self._config.cache_path, error) from error


def _reason(error: Exception) -> str:
    """What is wrong, without the file's name where the error repeats it."""
    from tunerkit.data.media import UnreadableMedia

    return f"{error.reason}. Fix: {error.fix}" if isinstance(error, UnreadableMedia) else str(error)


def _same_batch(one: Sample, other: Sample) -> bool:
    return (one.dataset, one.bucket) == (other.dataset, other.bucket)


def _until_done(source: Iterator[Item | None], writer: WriteBehind) -> Iterator[Item | None]:
    """The items of `source`; None, and None at the end, tells the caller to finish what it has collected.

    While all that is left is being made by other processes, it is waited for, as long as they live.
    """
    told = False
    for item in source:
        yield item
        if item is None:
            writer.settle(0)
            if not told:
                logger.info("the rest is being encoded by other processes; waiting for them")
            told = True
            time.sleep(POLL_SECONDS)
    yield None
