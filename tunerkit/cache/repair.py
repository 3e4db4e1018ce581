"""Making one cache entry anew in the middle of a training, when it is damaged or gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn

from tunerkit.cache.encode import EncodingError, LatentEncoder, encode_texts, load_where_it_fits, mask_weights
from tunerkit.cache.write_behind import cannot_write
from tunerkit.data.decode import decode
from tunerkit.data.probe import content_digest
from tunerkit.devices import free_memory, run_device
from tunerkit.errors import TunerkitError

if TYPE_CHECKING:
    import torch

    from tunerkit.cache.entries import Cache
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family, TextKind

logger = logging.getLogger("tunerkit")


def rebuild_latents(config: TrainConfig, family: Family, cache: Cache, sample: Sample) -> torch.Tensor:
    """Encode a sample again and cache it; the VAE is loaded for it, on the CPU if the device has no room, and freed.

    Returns:
        Clean normalised latents, float32 `[C, t, h, w]` on the CPU.

    Raises:
        TunerkitError: the clip is gone, was changed since the run began or cannot be encoded, or the cache folder
            cannot be written.
    """
    import torch

    store = cache.latent_stores[sample.dataset]
    logger.warning(
        "the cached latents of %s (%s) are damaged or gone; the clip is encoded again",
        sample.file,
        store.path(cache.namer.latents(sample)),
    )
    try:
        if content_digest(sample.file) != sample.source.digest:
            _give_up(sample, "the file was changed since the run began")
        pixels = torch.from_numpy(decode(sample))
    except OSError as error:
        _give_up(sample, error.strerror or str(error), error)
    except TunerkitError:
        raise
    except Exception as error:  # whatever the decoder makes of a bad file
        _give_up(sample, str(error), error)
    encoder = LatentEncoder(config, family)
    try:
        [encoded] = encoder.encode([pixels])
    finally:
        encoder.close()
    if isinstance(encoded, EncodingError):
        _give_up(sample, str(encoded), encoded)
    latents, fallback = encoded
    try:
        cache.put_latents(sample, latents, fallback=fallback)
    except OSError as error:
        raise cannot_write(store.folder, error) from error
    return latents


def rebuild_mask(family: Family, cache: Cache, sample: Sample, latents: torch.Tensor) -> torch.Tensor:
    """Make the weights of a sample's mask again and cache them.

    Args:
        latents: those of the sample, `[C, t, h, w]`.

    Returns:
        Weights in [0, 1], float32 `[1, t, h, w]`.

    Raises:
        TunerkitError: the mask is gone or cannot be used, or the cache folder cannot be written.
    """
    logger.warning("the cached mask of %s is damaged or gone; it is made again", sample.file)
    try:
        weights = mask_weights(family, sample, latents.shape)
    except EncodingError as error:
        _give_up(sample, str(error), error)
    try:
        cache.put_mask(sample, weights)
    except OSError as error:
        raise cannot_write(cache.latent_stores[sample.dataset].folder, error) from error
    return weights


def rebuild_text(
    config: TrainConfig, family: Family, cache: Cache, text: str, kind: TextKind
) -> dict[str, torch.Tensor]:
    """Encode a text again and cache it; the text encoder is loaded for it, on the CPU if need be, and freed.

    Returns:
        The family's text tensors on the CPU, without a batch dimension.

    Raises:
        TunerkitError: the checkpoint is gone, or the cache folder cannot be written.
    """
    logger.warning(
        "the cached text %r (%s) is damaged or gone; it is encoded again",
        text if len(text) <= 60 else f"{text[:57]}...",
        cache.text_store.path(cache.namer.text(text, kind)),
    )
    encoder, _ = load_where_it_fits(
        lambda device: family.load_text_encoder(config, device), run_device(config), "the text encoder"
    )
    try:
        [tensors] = encode_texts(encoder, family, config, [text], kind)
    finally:
        del encoder
        free_memory()
    try:
        cache.put_text(text, kind, tensors)
    except OSError as error:
        raise cannot_write(cache.text_store.folder, error) from error
    return tensors


def _give_up(sample: Sample, reason: str, cause: Exception | None = None) -> NoReturn:
    raise TunerkitError(
        f"{sample.file} cannot be encoded again: {reason}. Fix: put the file back as it was, or start the same command "
        "again; the datasets are looked at anew then"
    ) from cause
