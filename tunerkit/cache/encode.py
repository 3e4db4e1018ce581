"""Encoding text, clips and sound in as much memory as there is: what does not fit is tried again in smaller ways."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tunerkit.devices import free_memory, is_out_of_memory, run_device
from tunerkit.errors import ModelError, TunerkitError

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family
    from tunerkit.families.facts import TextKind

logger = logging.getLogger("tunerkit")

ON_CPU = "cpu"
"""The last fallback of every family."""
Loaded = TypeVar("Loaded")


class EncodingError(TunerkitError):
    """A clip could not be encoded.

    Attributes:
        clip_at_fault: False where other settings or more memory would do.
    """

    def __init__(self, message: str, *, clip_at_fault: bool) -> None:
        super().__init__(message)
        self.clip_at_fault = clip_at_fault


def load_where_it_fits(
    load: Callable[[torch.device], Loaded], device: torch.device, what: str
) -> tuple[Loaded, torch.device]:
    """Load on `device`, or on the CPU when it does not fit; the second value says where it is."""
    import torch

    try:
        return load(device), device
    except Exception as error:
        if device.type == ON_CPU or not is_out_of_memory(error):
            raise
    free_memory()  # outside of the handler: the error keeps what was loaded so far alive
    logger.warning("%s does not fit on %s; it is loaded on the CPU, which is slower", what, device)
    return load(torch.device(ON_CPU)), torch.device(ON_CPU)


class LatentEncoder:
    """A VAE that encodes clips the configured way, and in less memory where that fails.

    The rungs of the ladder are the configured way, the family's `vae_fallbacks` one after the other, each on top of
    those before, and the CPU. On each rung the batch is halved down to one clip before the next rung is tried. What
    failed is remembered by its number of pixels: as large a batch starts further down at once, a smaller one from the
    configured way again.
    """

    def __init__(self, config: TrainConfig, family: Family) -> None:
        """Nothing is loaded before the first clip."""
        self._config, self._family, self._device = config, family, run_device(config)
        self._rungs = vae_rungs(config, family)
        self._vae: Any = None
        self._rung = 0
        self._failed: dict[int, int] = {}
        """Rung -> fewest pixels (of a whole batch) that did not fit."""

    def close(self) -> None:
        """Free the VAE."""
        self._vae = None
        free_memory()

    def encode(self, clips: Sequence[torch.Tensor]) -> list[tuple[dict[str, torch.Tensor], str] | EncodingError]:
        """Encode clips of one shape.

        Args:
            clips: uint8 `[T, H, W, 3]` each, on the CPU.

        Returns:
            For each clip its clean normalised latents, float32 on the CPU, as `Cache.clip` has them, and the fallback
            that made them ("" = the configured way), or why there are none.
        """
        results: list[tuple[dict[str, torch.Tensor], str] | EncodingError] = []
        while len(results) < len(clips):
            way = self._way(clips[0].numel(), len(clips) - len(results))
            if way is None:
                results += [self._too_large()] * (len(clips) - len(results))
                break
            rung, count = way
            part = clips[len(results) : len(results) + count]
            try:
                encoded = self._encode_at(rung, part)
            except ModelError:  # no clip is at fault
                raise
            except Exception as error:  # whatever one clip makes of the VAE must not end the job
                if not is_out_of_memory(error):
                    results += [_failure(error)] if count == 1 else [self.encode([clip])[0] for clip in part]
                    continue
                encoded = None
            if encoded is None:
                self._remember(rung, part)  # outside of the handler: the error keeps the tensors alive
            else:
                results += [(tensors, self._rungs[rung]) for tensors in encoded]
        return results

    def _way(self, pixels: int, clips: int) -> tuple[int, int] | None:
        """The first rung, and the most clips of `pixels` each, that are not known to be too much."""
        for rung in range(len(self._rungs)):
            limit = self._failed.get(rung)
            count = clips
            while count > 1 and limit is not None and count * pixels >= limit:
                count //= 2
            if limit is None or count * pixels < limit:
                return rung, count
        return None

    def _encode_at(self, rung: int, clips: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        import torch

        vae = self._at(rung)
        # Bytes travel to the device: a quarter of the floats. [B, T, H, W, 3] -> [B, 3, T, H, W] in [-1, 1].
        pixels = torch.stack(list(clips)).to(next(vae.parameters()).device)
        scaled = pixels.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        scaled.div_(127.5).sub_(1.0)
        del pixels
        taken = {"latents": scaled}
        if self._family.encodes_first_frame:  # image to video or not: little more, and it may be switched on later
            taken["first_frame"] = scaled[:, :, :1]
        made = {key: self._family.encode_latents(vae, part).float().cpu() for key, part in taken.items()}
        return [{key: latents[place] for key, latents in made.items()} for place in range(len(clips))]

    def _at(self, rung: int) -> Any:
        """The VAE, brought to `rung`."""
        if self._vae is None or rung < self._rung:
            self._vae = None  # what saved memory cannot be undone in place
            free_memory()
            self._vae, where = load_vae(self._config, self._family, self._device)
            self._rung = 0
            if where != self._device:
                self._failed.update(dict.fromkeys(range(len(self._rungs) - 1), 0))
        for how in self._rungs[self._rung + 1 : rung + 1]:
            save_vae_memory(self._family, self._vae, how)
        self._rung = rung
        return self._vae

    def _remember(self, rung: int, clips: Sequence[torch.Tensor]) -> None:
        free_memory()
        pixels = clips[0].numel()
        self._failed[rung] = min(len(clips) * pixels, self._failed.get(rung, len(clips) * pixels))
        following = self._way(pixels, len(clips))
        frames, height, width, _ = clips[0].shape
        logger.warning(
            "out of memory while encoding %dx%d, %d frames, with %s: %s",
            width,
            height,
            frames,
            _in_batches(self._rungs[rung], len(clips)),
            "given up" if following is None else f"now with {_in_batches(self._rungs[following[0]], following[1])}",
        )

    def _too_large(self) -> EncodingError:
        return EncodingError(
            "out of memory even when encoded alone, with every way to save memory and on the CPU; lower resolution or "
            "video.num_frames",
            clip_at_fault=False,
        )


def vae_rungs(config: TrainConfig, family: Family) -> tuple[str, ...]:
    """Ways to run the VAE, each in less memory than the one before: "" as configured, those of the family's
    `vae_fallbacks` that the settings do not ask for, and the CPU."""
    taken = {"in parts": config.vae_enable_temporal_roll, "tiled": config.vae_enable_tiling}
    return ("", *(how for how in family.vae_fallbacks if not taken.get(how)), ON_CPU)


def load_vae(config: TrainConfig, family: Family, device: torch.device) -> tuple[Any, torch.device]:
    """The VAE on `device`, offloaded as the settings say, or on the CPU when it does not fit; and where it is."""

    def load(device: torch.device) -> Any:
        return family.load_vae(config, device)

    return load_where_it_fits(
        lambda device: _load(load, config, device, offloaded=config.group_offload_vae), device, "the VAE"
    )


def save_vae_memory(family: Family, vae: Any, how: str) -> None:
    """Let `vae` run the way `how` of `vae_rungs`, which is not the first one, from now on."""
    if how == ON_CPU:
        _to_cpu(vae)
    else:
        family.save_vae_memory(vae, how)


def load_text_encoder(config: TrainConfig, family: Family) -> Any:
    """Tokenizer and text encoder on the run's device, or on the CPU when they do not fit."""

    def load(device: torch.device) -> Any:
        return family.load_text_encoder(config, device)

    return load_where_it_fits(
        lambda device: _load(load, config, device, offloaded=config.group_offload_text_encoder),
        run_device(config),
        "the text encoder",
    )[0]


def _load(
    load: Callable[[torch.device], Loaded], config: TrainConfig, device: torch.device, *, offloaded: bool
) -> Loaded:
    """What `load` loads on `device`, or offloaded to compute there."""
    if not offloaded:
        return load(device)
    from tunerkit.memory.offload_encode import load_offloaded

    return load_offloaded(load, config, device)


def _to_cpu(loaded: Any) -> None:
    """Move a model to the CPU, offloaded or not."""
    from tunerkit.memory.offload_encode import stay_on_cpu

    stay_on_cpu(loaded)
    free_memory()


def encode_texts(
    encoder: Any, family: Family, config: TrainConfig, texts: Sequence[str], kind: TextKind
) -> list[dict[str, torch.Tensor]]:
    """Text tensors of each text; where memory is short in halves, at last one by one on the CPU (and it stays there).

    Raises:
        Exception: what the family's encoder raises.
    """
    try:
        return family.encode_text(encoder, texts, kind, config)
    except Exception as error:
        on_cpu = str(getattr(encoder, "device", ON_CPU)) == ON_CPU
        if not is_out_of_memory(error) or (len(texts) == 1 and on_cpu):
            raise
    free_memory()
    if len(texts) > 1:
        logger.warning("out of memory while encoding %d captions: trying again with half of them", len(texts))
        middle = len(texts) // 2
        parts = (texts[:middle], texts[middle:])
        return [tensors for part in parts for tensors in encode_texts(encoder, family, config, part, kind)]
    logger.warning("out of memory while encoding a caption: the text encoder goes to the CPU, which is slower")
    _to_cpu(encoder)
    return encode_texts(encoder, family, config, texts, kind)


def load_audio_vae(config: TrainConfig, family: Family) -> Any:
    """The audio VAE on the run's device, or on the CPU when it does not fit."""
    return load_where_it_fits(
        lambda device: family.load_audio_vae(config, device), run_device(config), "the audio VAE"
    )[0]


def sound_waveform(family: Family, sample: Sample) -> torch.Tensor:
    """The waveform of a sample's sound as the family's audio VAE takes it, float32 `[channels, samples]`.

    Raises:
        EncodingError: the sound cannot be decoded.
        ValueError: the sample or the family has no sound.
    """
    import torch

    from tunerkit.data.audio import decode_sound
    from tunerkit.data.media import UnreadableMedia

    sound, wanted = sample.sound, family.sound
    if sound is None or wanted is None:
        raise ValueError(f"{sample.name} or the model has no sound")
    try:
        waveform = decode_sound(sound, sample_rate=wanted.sample_rate, channels=wanted.channels)
    except UnreadableMedia as error:
        where = "its sound" if sound.file == sample.file else f"its sound {sound.file}"
        raise EncodingError(f"{where}: {error.reason}. Fix: {error.fix}", clip_at_fault=False) from error
    return torch.from_numpy(waveform)


def encode_sounds(vae: Any, family: Family, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor | EncodingError]:
    """Audio latents of waveforms of one length; where memory is short in halves, at last one by one on the CPU (and
    the audio VAE stays there).

    Args:
        waveforms: float32 `[channels, samples]` in [-1, 1] each, on the CPU.

    Returns:
        For each waveform its clean normalised audio latents, float32 `[L, D]` on the CPU, or why there are none.
    """
    import torch

    device = next(vae.parameters()).device
    trouble: EncodingError | None = None
    try:
        with torch.no_grad():
            return list(family.encode_sound(vae, torch.stack(list(waveforms)).to(device)).float().cpu())
    except Exception as error:  # whatever one sound makes of the VAE must not end the job
        if not is_out_of_memory(error):
            trouble = EncodingError(f"the audio VAE refused it: {type(error).__name__}: {error}", clip_at_fault=False)
    free_memory()  # outside of the handler: the error keeps the tensors alive
    if len(waveforms) > 1:
        middle = len(waveforms) // 2
        parts = (waveforms[:middle], waveforms[middle:])
        return [latents for part in parts for latents in encode_sounds(vae, family, part)]
    if trouble is None and device.type != ON_CPU:
        logger.warning("out of memory while encoding sound: the audio VAE goes to the CPU, which is slower")
        vae.to(ON_CPU)
        free_memory()
        return encode_sounds(vae, family, waveforms)
    return [trouble or EncodingError("out of memory even when its sound is encoded alone", clip_at_fault=False)]


def mask_weights(family: Family, sample: Sample, latents_shape: Sequence[int]) -> torch.Tensor:
    """Weights of a sample's mask on the latent grid, float32 `[1, t, h, w]` in [0, 1].

    Args:
        latents_shape: `(C, t, h, w)` of the sample's latents.

    Raises:
        EncodingError: the mask cannot be used.
    """
    import torch

    from tunerkit.data.masks import decode_mask, latent_weights

    _, frames, height, width = latents_shape
    try:
        weights = latent_weights(decode_mask(sample), frames, height, width, family.temporal_compression)
    except Exception as error:  # whatever the decoder makes of a bad mask
        raise EncodingError(f"its mask cannot be used: {error}", clip_at_fault=False) from error
    if not weights.any():
        raise EncodingError(
            "its mask is black in all used frames, so nothing of the clip would be learned", clip_at_fault=False
        )
    return torch.from_numpy(weights)


def _failure(error: Exception) -> EncodingError:
    return EncodingError(f"the VAE refused it: {type(error).__name__}: {error}", clip_at_fault=False)


def described(rung: str) -> str:
    """A rung of the ladder for a message."""
    ways = {
        "": "the settings as given",
        "in parts": "a frame at a time",
        "tiled": "tiling",
        ON_CPU: "the VAE on the CPU",
    }
    return ways.get(rung, rung)


def _in_batches(rung: str, clips: int) -> str:
    return f"{described(rung)}, {clips} at a time"
