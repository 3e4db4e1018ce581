"""Making one cache entry anew in the middle of a training, when it is damaged or gone.

What cannot be written, because the folder is another user's or the disk is full, is held in memory by its store.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from tunerkit.cache.build_features import FeatureEncoder, decoded_frames
from tunerkit.cache.encode import (
    EncodingError,
    LatentEncoder,
    encode_sounds,
    encode_texts,
    load_audio_vae,
    load_text_encoder,
    mask_weights,
    sound_waveform,
)
from tunerkit.cache.write_behind import USE_ANOTHER_FOLDER, folder_in_the_way
from tunerkit.data.decode import decode
from tunerkit.data.probe import content_digest
from tunerkit.devices import free_memory
from tunerkit.errors import TunerkitError

if TYPE_CHECKING:
    import torch

    from tunerkit.cache.entries import Cache
    from tunerkit.cache.store import Store
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.facts import TextKind

logger = logging.getLogger("tunerkit")


def rebuild_latents(config: TrainConfig, family: Family, cache: Cache, sample: Sample) -> dict[str, torch.Tensor]:
    """Encode a sample again and cache it; the VAE is loaded for it, on the CPU if the device has no room, and freed.

    Returns:
        Clean normalised latents, float32 on the CPU, as `Cache.clip` has them.

    Raises:
        TunerkitError: the clip is gone, was changed since the run began or cannot be encoded.
    """
    import torch

    store = cache.latent_stores[sample.dataset]
    logger.warning(
        "the cached latents of %s (%s) are damaged or gone; the clip is encoded again",
        sample.file,
        store.path(cache.namer.latents(sample)),
    )
    with _clip_as_it_was(sample):
        pixels = torch.from_numpy(decode(sample))
    encoder = LatentEncoder(config, family)
    try:
        [encoded] = encoder.encode([pixels])
    finally:
        encoder.close()
    if isinstance(encoded, EncodingError):
        _give_up(sample, str(encoded), encoded)
    tensors, fallback = encoded
    with _held_if_not_written(cache, store, cache.namer.latents(sample), tensors):
        cache.put_latents(sample, fallback=fallback, **tensors)
    return tensors


def rebuild_mask(family: Family, cache: Cache, sample: Sample, latents: torch.Tensor) -> torch.Tensor:
    """Make the weights of a sample's mask again and cache them.

    Args:
        latents: those of the sample, `[C, t, h, w]`.

    Returns:
        Weights in [0, 1], float32 `[1, t, h, w]`.

    Raises:
        TunerkitError: the mask is gone or cannot be used.
    """
    logger.warning("the cached mask of %s is damaged or gone; it is made again", sample.file)
    try:
        weights = mask_weights(family, sample, latents.shape)
    except EncodingError as error:
        _give_up(sample, str(error), error)
    store, name = cache.latent_stores[sample.dataset], cache.namer.mask(sample)
    with _held_if_not_written(cache, store, name, {"weights": weights}):
        cache.put_mask(sample, weights)
    return weights


def rebuild_sound(config: TrainConfig, family: Family, cache: Cache, sample: Sample) -> torch.Tensor:
    """Encode the sound of a sample again and cache it; the audio VAE is loaded for it and freed.

    Returns:
        Clean normalised audio latents, float32 `[L, D]` on the CPU.

    Raises:
        TunerkitError: the file is gone, was changed since the run began or its sound cannot be encoded.
        ValueError: the sample has no sound.
    """
    sound = sample.sound
    if sound is None:
        raise ValueError(f"{sample.name} has no sound")
    store = cache.latent_stores[sample.dataset]
    logger.warning(
        "the cached sound of %s (%s) is damaged or gone; it is encoded again",
        sample.file,
        store.path(cache.namer.sound(sample)),
    )
    try:
        if not sound.silent and content_digest(sound.file) != sound.digest:
            _give_up(sample, f"{sound.file} was changed since the run began")
        waveform = sound_waveform(family, sample)
    except OSError as error:
        _give_up(sample, f"{sound.file}: {error.strerror or error}", error)
    except EncodingError as error:
        _give_up(sample, str(error), error)
    vae = load_audio_vae(config, family)
    try:
        [latents] = encode_sounds(vae, family, [waveform])
    finally:
        del vae
        free_memory()
    if isinstance(latents, EncodingError):
        _give_up(sample, str(latents), latents)
    with _held_if_not_written(cache, store, cache.namer.sound(sample), {"audio": latents}):
        cache.put_sound(sample, latents)
    return latents


def rebuild_features(config: TrainConfig, family: Family, cache: Cache, sample: Sample) -> torch.Tensor:
    """Make the image encoder's features of a sample again and cache them; the encoder is loaded for it and freed.

    Returns:
        Features, float16 `[t, h, w, E]` on the CPU.

    Raises:
        TunerkitError: the clip is gone, was changed since the run began or cannot be encoded.
    """
    store, name = cache.latent_stores[sample.dataset], cache.namer.features(sample)
    logger.warning(
        "the cached features of %s (%s) are damaged or gone; they are made again", sample.file, store.path(name)
    )
    with _clip_as_it_was(sample):
        frames = decoded_frames(sample, family)
    encoder = FeatureEncoder(config)
    try:
        features = encoder.encode(frames)
    finally:
        encoder.close()
    if isinstance(features, EncodingError):
        _give_up(sample, str(features), features)
    with _held_if_not_written(cache, store, name, {"features": features}):
        cache.put_features(sample, features)
    return features


def rebuild_text(
    config: TrainConfig, family: Family, cache: Cache, text: str, kind: TextKind
) -> dict[str, torch.Tensor]:
    """Encode a text again and cache it; the text encoder is loaded for it, on the CPU if need be, and freed.

    Returns:
        The family's text tensors on the CPU, without a batch dimension.

    Raises:
        TunerkitError: the checkpoint is gone.
    """
    logger.warning(
        "the cached text %r (%s) is damaged or gone; it is encoded again",
        text if len(text) <= 60 else f"{text[:57]}...",
        cache.text_store.path(cache.namer.text(text, kind)),
    )
    encoder = load_text_encoder(config, family)
    try:
        [tensors] = encode_texts(encoder, family, config, [text], kind)
    finally:
        del encoder
        free_memory()
    with _held_if_not_written(cache, cache.text_store, cache.namer.text(text, kind), tensors):
        cache.put_text(text, kind, tensors)
    return tensors


@contextlib.contextmanager
def _clip_as_it_was(sample: Sample) -> Iterator[None]:
    """Inside, a clip is decoded that is still what it was when the run began.

    Raises:
        TunerkitError: it is not, or cannot be decoded.
    """
    try:
        if content_digest(sample.file) != sample.source.digest:
            _give_up(sample, "the file was changed since the run began")
        yield
    except OSError as error:
        _give_up(sample, error.strerror or str(error), error)
    except TunerkitError:
        raise
    except Exception as error:  # whatever the decoder makes of a bad file
        _give_up(sample, str(error), error)


@contextlib.contextmanager
def _held_if_not_written(cache: Cache, store: Store, name: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Hold `tensors` in memory if the block cannot write them; said once per folder."""
    try:
        yield
    except OSError as error:
        store.keep(name, tensors)
        if store.folder not in cache.unwritable:
            cache.unwritable.add(store.folder)
            blocked = folder_in_the_way(error)
            logger.warning(
                "cache folder %s cannot be written (%s): what is made anew of it is held in memory, and has to be made "
                "again in the next run. Fix: %s",
                store.folder,
                blocked or error.strerror or error,
                "delete that folder" if blocked else USE_ANOTHER_FOLDER,
            )


def _give_up(sample: Sample, reason: str, cause: Exception | None = None) -> NoReturn:
    reason = reason.rstrip(".")
    fix = "put the file back as it was, or start the same command again: it looks at the datasets anew"
    told = reason if "Fix: " in reason else f"{reason}. Fix: {fix}"
    raise TunerkitError(f"{sample.file} cannot be encoded again: {told}.") from cause
