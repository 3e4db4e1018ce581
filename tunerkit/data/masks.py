"""Masks of clips: which part of every frame is learned, white = all of it, black = nothing, grey = that share.

A mask is cut exactly like its clip: the same frames by their number, the same scaling and the same crop box. On the
grid of the latents a weight is the mean of the mask over the pixels and frames that the latent position stands for.
The VAEs are causal in time: latent frame 0 stands for pixel frame 0 alone, latent frame j >= 1 for the pixel frames
(j - 1) r + 1 .. j r at a temporal compression of r.
"""

from __future__ import annotations

import numpy as np

from tunerkit.data.decode import decode
from tunerkit.data.media import UnreadableMedia
from tunerkit.data.probe import read_media
from tunerkit.data.samples import Mask, Sample, Source

ASPECT_TOLERANCE = 0.01
"""Largest difference between the shapes of mask and clip: what rounding to whole pixels can make of small masks."""

LUMA = np.array([2126, 7152, 722], np.uint32)
"""Weights of red, green and blue in grey, in 1/10,000 (ITU-R BT.709, 3.2); they leave a grey value as it is."""


def decode_mask(sample: Sample) -> np.ndarray:
    """The mask of a sample as grey pixels, uint8 `[T, H, W]` with 255 = learned.

    A mask clip gives the frames of `sample.frame_indices`, counted, since its clock may differ from the clip's; a
    still is decoded once and is a read-only view repeated over T.

    Raises:
        UnreadableMedia: the mask is gone, damaged, has another shape than the clip or too few frames.
        ValueError: the sample has no mask.
    """
    mask = sample.mask
    if mask is None:
        raise ValueError(f"{sample.name} has no mask")
    source = read_media(mask.file, mask.kind).source
    refusal = refuse_mask(mask, source, sample)
    if refusal is not None:
        raise refusal
    still = mask.kind == "image"
    picture = sample._replace(
        file=mask.file,
        kind=mask.kind,
        source=source,
        frame_indices=(0,) if still else sample.frame_indices,
        frame_times=(),
    )
    grey = _luma(decode(picture))
    return np.broadcast_to(grey, (len(sample.frame_indices), *grey.shape[1:])) if still else grey


def refuse_mask(mask: Mask, source: Source, sample: Sample) -> UnreadableMedia | None:
    """Why a mask does not fit a sample; None where it fits.

    Args:
        source: what was found in the mask's file.
    """
    clip = sample.source
    if abs(source.width * clip.height / (source.height * clip.width) - 1) > ASPECT_TOLERANCE:
        return UnreadableMedia(
            mask.file,
            f"the mask {mask.file.name} is {source.width}x{source.height} and the clip {sample.name} "
            f"{clip.width}x{clip.height}: not the same shape",
            f"export the mask at {clip.width}x{clip.height}, or at another size of that shape",
            "mask shape",
        )
    needed = max(sample.frame_indices) + 1
    if mask.kind == "video" and source.frames < needed:
        return UnreadableMedia(
            mask.file,
            f"the mask {mask.file.name} ({source.width}x{source.height}) has {source.frames} frames and the clip "
            f"{sample.name} ({clip.width}x{clip.height}) is used up to frame {needed} of {clip.frames}",
            f"make the mask as long as the clip, {clip.frames} frames, or use a still image as the mask",
            "mask too short",
        )
    return None


def latent_weights(
    mask: np.ndarray, latent_frames: int, height: int, width: int, temporal_compression: int
) -> np.ndarray:
    """The mask on the grid of the latents: float32 `[1, t, h, w]` in 0..1.

    Args:
        mask: uint8 `[T, H, W]` with T = (latent_frames - 1) * temporal_compression + 1.
        latent_frames: t.
        height: h; H is a whole multiple of it.
        width: w; W is a whole multiple of it.
        temporal_compression: pixel frames per latent frame after the first.

    Raises:
        ValueError: the mask does not divide into the grid.
    """
    frames, full_height, full_width = mask.shape
    if frames != (latent_frames - 1) * temporal_compression + 1 or full_height % height or full_width % width:
        raise ValueError(
            f"a mask of {frames} frames of {full_width}x{full_height} does not divide into {latent_frames} latent "
            f"frames of {width}x{height} at a temporal compression of {temporal_compression}"
        )
    tile = (full_height // height) * (full_width // width)
    blocks = mask.reshape(frames, height, full_height // height, width, full_width // width)
    area = blocks.sum(axis=(2, 4), dtype=np.uint64)  # whole numbers: the order of the sums does not matter
    later = area[1:].reshape(latent_frames - 1, temporal_compression, height, width).sum(axis=1)
    weights = np.concatenate([area[:1] / (255 * tile), later / (255 * tile * temporal_compression)])
    return weights[None].astype(np.float32)


def _luma(pixels: np.ndarray) -> np.ndarray:
    """Grey uint8 `[T, H, W]` of RGB uint8 `[T, H, W, 3]`; frame by frame, to hold little memory."""
    grey = np.empty(pixels.shape[:3], np.uint8)
    for number, picture in enumerate(pixels):
        grey[number] = (picture @ LUMA + 5_000) // 10_000
    return grey
