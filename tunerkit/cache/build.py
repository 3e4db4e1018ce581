"""Encode captions, then clips, then their sound and features of their frames, once: the only time that the encoders
are in memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tunerkit.families as families
from tunerkit.cache.build_features import check_features, encode_missing_features
from tunerkit.cache.build_sound import encode_missing_sounds
from tunerkit.cache.claims import Claims, divided
from tunerkit.cache.decode_ahead import DecodeAhead, pixel_bytes
from tunerkit.cache.encode import (
    EncodingError,
    LatentEncoder,
    encode_texts,
    load_text_encoder,
    mask_weights,
)
from tunerkit.cache.entries import Cache
from tunerkit.cache.job import CacheFailure, CacheResult, Job, reason_of, until_done
from tunerkit.cache.progress import Progress, ProgressBar
from tunerkit.cache.store import CacheEntryError, Store
from tunerkit.cache.write_behind import WriteBehind, cannot_write
from tunerkit.config.prompts import validation_prompts
from tunerkit.devices import free_memory
from tunerkit.project import resolve

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.samples import Sample
    from tunerkit.families.facts import TextKind

__all__ = ["CacheFailure", "CacheResult", "Progress", "build_cache", "needed_texts"]


def build_cache(
    config: TrainConfig, *, report: DatasetReport | None = None, progress: Progress | bool = True
) -> CacheResult:
    """Encode every caption, prompt, clip and sound that is not cached yet; may be interrupted and called again.

    One component is in memory at a time: first the text encoder, then the VAE, then the audio VAE, then with
    `crepa_enabled` the image encoder. Each entry is written as soon as it is ready. Clips of evaluation datasets are
    encoded too. A clip of which something cannot be encoded is reported and skipped; with
    `delete_problematic_images`, one that cannot be decoded comes on the quarantine list. Several processes, on one
    machine or several, may fill the same cache at the same time: they share the work.

    Whether an entry is there and not empty is all that is asked here; a damaged one is found when it is read, and made
    anew then.

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
    check_features(config)
    cache = Cache(config, family)
    stores = [cache.text_store, *cache.latent_stores.values()]
    for store in {store.folder: store for store in stores}.values():  # datasets may share a folder
        _prepare_store(store)
    result = CacheResult()
    with Claims([store.folder for store in stores]) as claims:
        filling = _Filling(config, family, cache, claims, result, progress)
        filling.texts(needed_texts(config, samples))
        filling.clips(samples)
        encode_missing_sounds(filling, samples)
        encode_missing_features(filling, samples)
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
        store.clear_torn()
    except OSError as error:
        raise cannot_write(store.folder, error) from error


class _Filling(Job):
    """Fills the cache with captions and clips."""

    _sharing: Mapping[tuple[Path, str], Sequence[Sample]]
    """Missing clips by their entry: files with the same content share one entry of their dataset."""

    # Captions --------------------------------------------------------------------------------------------------

    def texts(self, texts: Sequence[tuple[str, TextKind]]) -> None:
        """Encode the texts that are missing; the text encoder is loaded only if there is one."""
        cache, result = self.cache, self.result
        missing = [entry for entry in texts if not cache.has_text(*entry)]
        result.texts_reused = len(texts) - len(missing)
        if not missing:
            return
        encoder: Any = None
        try:
            with ProgressBar("captions", len(missing), self.progress) as bar, WriteBehind() as writer:

                def found(_: tuple[str, TextKind]) -> None:
                    result.texts_reused += 1
                    bar.advance()

                batch: list[tuple[str, TextKind]] = []
                source = divided(missing, self.claims, self._text_place, lambda e: cache.has_text(*e), found)
                for entry in until_done(source, writer):
                    full = len(batch) >= self.config.text_encoder_batch_size
                    if batch and (entry is None or full or batch[0][1] != entry[1]):
                        encoder = load_text_encoder(self.config, self.family) if encoder is None else encoder
                        self._encode_texts(encoder, batch, writer, bar)
                        batch = []
                    if entry is not None:
                        batch.append(entry)
        finally:
            del encoder
            free_memory()

    def _encode_texts(
        self, encoder: Any, batch: Sequence[tuple[str, TextKind]], writer: WriteBehind, bar: ProgressBar
    ) -> None:
        kind = batch[0][1]
        texts = [text for text, _ in batch]
        encoded = encode_texts(encoder, self.family, self.config, texts, kind)
        for text, tensors in zip(texts, encoded, strict=True):

            def write(text: str = text, tensors: dict[str, torch.Tensor] = tensors) -> None:
                self.cache.put_text(text, kind, tensors)
                self.claims.release(*self._text_place((text, kind)))

            def outcome(error: Exception | None) -> None:
                if error is not None:
                    raise error
                self.result.texts_encoded += 1
                bar.advance()

            writer.put(self.cache.text_store.folder, write, outcome)

    def _text_place(self, entry: tuple[str, TextKind]) -> tuple[Path, str]:
        return self.cache.text_store.folder, self.cache.namer.text(*entry)

    # Clips -----------------------------------------------------------------------------------------------------

    def clips(self, samples: Sequence[Sample]) -> None:
        """Encode the clips that are missing; the VAE is loaded only if there is one."""
        cache, result = self.cache, self.result
        self._masks([sample for sample in samples if sample.mask and cache.has_latents(sample)])
        missing: defaultdict[tuple[Path, str], list[Sample]] = defaultdict(list)
        self._sharing = missing
        for sample in cache.without_latents(samples):
            missing[self._clip_place(sample)].append(sample)
        result.latents_reused = len(samples) - sum(map(len, missing.values()))
        if not missing:
            return
        # Small ones first: where memory gets short, all that follow are at least as large.
        ordered = sorted((several[0] for several in missing.values()), key=_cost)
        encoder = LatentEncoder(self.config, self.family)
        try:
            with ProgressBar("clips", len(missing), self.progress) as bar, WriteBehind() as writer:

                def found(sample: Sample) -> None:
                    result.latents_reused += len(missing[self._clip_place(sample)])
                    bar.advance()

                source = divided(ordered, self.claims, self._clip_place, cache.has_latents, found)
                with DecodeAhead(source, max(self.batch_sizes.values())) as decoded:
                    self._encode(encoder, decoded, writer, bar)
        finally:
            encoder.close()
        others = [sample for several in missing.values() for sample in several[1:]]
        self._masks([sample for sample in others if sample.mask and cache.has_latents(sample)])

    def _encode(self, encoder: LatentEncoder, decoded: DecodeAhead, writer: WriteBehind, bar: ProgressBar) -> None:
        batch: list[tuple[Sample, torch.Tensor]] = []
        for item in until_done(iter(decoded), writer):
            sample, pixels = item or (None, None)
            if sample is not None and isinstance(pixels, Exception):
                self._fail_all(sample, reason_of(pixels), bar, at_fault=not isinstance(pixels, MemoryError))
                continue
            if batch and (sample is None or not _same_batch(batch[0][0], sample)):
                self._encode_batch(encoder, batch, writer, bar)
                batch = []
            if sample is not None and not isinstance(pixels, Exception | None):
                batch.append((sample, pixels))
                if len(batch) >= self.batch_sizes[sample.dataset]:
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
                self._fail_all(sample, str(encoded), bar, at_fault=encoded.clip_at_fault)
            else:
                self._write(sample, *encoded, writer, bar)

    def _write(
        self, sample: Sample, tensors: dict[str, torch.Tensor], fallback: str, writer: WriteBehind, bar: ProgressBar
    ) -> None:
        place = self._clip_place(sample)

        def write() -> None:
            self.cache.put_latents(sample, fallback=fallback, **tensors)
            self.claims.release(*place)
            self._write_mask(sample, tensors["latents"].shape)

        def outcome(error: Exception | None) -> None:
            good = len(self._sharing[place])
            if isinstance(error, EncodingError):  # its own mask; the clip is whole
                self.fail(sample, place, str(error), at_fault=False)
                bar.advance()
                good -= 1
            elif error is not None:
                self._fail_all(sample, str(error), bar, at_fault=False)
                return
            else:
                bar.advance()
            self.result.latents_encoded += good
            if fallback and good:
                self.result.fallbacks[fallback] = self.result.fallbacks.get(fallback, 0) + good

        writer.put(self.cache.latent_stores[sample.dataset].folder, write, outcome)

    def _fail_all(self, sample: Sample, reason: str, bar: ProgressBar, *, at_fault: bool) -> None:
        """Record every clip that was to have this one's entry."""
        place = self._clip_place(sample)
        for each in self._sharing[place]:
            self.fail(each, place, reason, at_fault=at_fault)
        bar.advance()

    def _clip_place(self, sample: Sample) -> tuple[Path, str]:
        return self.cache.latent_stores[sample.dataset].folder, self.cache.namer.latents(sample)

    # Masks -----------------------------------------------------------------------------------------------------

    def _masks(self, samples: Iterable[Sample]) -> None:
        """Masks of clips that are cached already, but without them."""
        for sample in samples:
            if self.cache.has_mask(sample):
                continue
            try:
                self._write_mask(sample, self.cache.latents(sample).shape)
            except CacheEntryError:
                continue  # damaged and removed now: the clip is encoded again, with its mask
            except OSError as error:
                raise cannot_write(self.cache.latent_stores[sample.dataset].folder, error) from error
            except Exception as error:  # one bad mask must not end the job
                self.fail(sample, self._clip_place(sample), str(error), at_fault=False)

    def _write_mask(self, sample: Sample, latents_shape: Sequence[int]) -> None:
        if sample.mask is not None and not self.cache.has_mask(sample):
            self.cache.put_mask(sample, mask_weights(self.family, sample, latents_shape))


def _cost(sample: Sample) -> tuple[int, str, str]:
    return pixel_bytes(sample), sample.bucket, sample.dataset


def _same_batch(one: Sample, other: Sample) -> bool:
    return (one.dataset, one.bucket) == (other.dataset, other.bucket)
