"""VAEs that work on a few frames at a time: the same result, less memory, and no other VAE is touched."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from full_size import PeakMemory

import tunerkit as tk
from tunerkit.cache.encode import EncodingError, LatentEncoder
from tunerkit.demo.ltx2_vaes import averaging_video_vae
from tunerkit.demo.wan_vae import averaging_wan_vae
from tunerkit.errors import ModelError
from tunerkit.families.sana_video.family import SanaVideo
from tunerkit.memory.vae_parts import obstacle, work_in_parts, work_whole
from tunerkit.memory.vae_sizes import FRAMES, MOST_FRAMES, Parts, frames_that_fit

MakeConfig = Callable[..., tk.TrainConfig]
FRAMES_OF = {"wan": 13, "hunyuan": 21, "ltx2 2.0": 25, "ltx2 2.3": 17}
"""More than one of the pieces that the classes of Wan and Hunyuan cut a clip into."""

SETTINGS: tuple[dict[str, Any], ...] = ({"frames": 3}, {"smallest": True})


def hunyuan() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    widths: Any = (8, 16, 16, 16)
    return AutoencoderKLHunyuanVideo(
        block_out_channels=widths, layers_per_block=1, norm_num_groups=4, latent_channels=16
    )


def random_vae(kind: str) -> Any:
    """A tiny VAE of the real class with random weights, which keep signals at about one."""
    torch.manual_seed(0)
    vae = {"wan": averaging_wan_vae, "hunyuan": hunyuan}.get(kind, lambda: averaging_video_vae(kind.split()[-1]))()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            spread = 0.7 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=source) * spread)
            if name.endswith(("norm1.weight", "norm2.weight", "norm_out.weight", "gamma")):
                parameter.add_(1.0)
    return vae.requires_grad_(False).eval()


def clip(kind: str, frames: int, tiles: int = 1) -> torch.Tensor:
    """`[1, 3, T, H, W]` of few pixels; float64."""
    edge = 64 if kind.startswith("ltx2") else 16 if kind == "wan" else 32
    source = torch.Generator().manual_seed(2)
    return torch.rand(1, 3, frames, edge, edge * tiles, generator=source, dtype=torch.float64) * 2 - 1


def encoded(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The posterior's parameters, `[B, 2C, t, h, w]`."""
    return vae.encode(pixels.to(vae.dtype)).latent_dist.parameters


def decoded(vae: Any, parameters: torch.Tensor) -> torch.Tensor:
    """The video of the posterior's mode."""
    return vae.decode(parameters.chunk(2, dim=1)[0].to(vae.dtype)).sample


def far(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference against the largest value."""
    assert made.shape == expected.shape
    assert float(expected.std()) > 1e-3  # so the comparison says something
    return float((made - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("kind", FRAMES_OF)
def test_the_result_is_that_of_the_stock_class(kind: str, dtype: torch.dtype, close: float) -> None:
    vae = random_vae(kind).to(dtype)
    pixels = clip(kind, FRAMES_OF[kind])
    latents = encoded(vae, pixels)
    video = decoded(vae, latents)
    for settings in SETTINGS[0 if dtype == torch.float64 else 1 :]:
        work_in_parts(vae, **settings)
        assert far(encoded(vae, pixels), latents) < close, settings
        assert far(decoded(vae, latents), video) < close, settings
    if dtype != torch.float64:
        return
    # What comes late depends on what came early, so that a lost history would have been seen.
    earlier = encoded(vae, torch.cat([pixels[:, :, :1] + 1, pixels[:, :, 1:]], dim=2))
    assert far(earlier[:, :, 1:], latents[:, :, 1:]) > 1e-3
    assert far(decoded(vae, torch.cat([earlier[:, :, :1], latents[:, :, 1:]], dim=2))[:, :, 9:], video[:, :, 9:]) > 1e-4
    work_whole(vae)
    assert torch.equal(encoded(vae, pixels), latents)


@pytest.mark.parametrize("kind", FRAMES_OF)
def test_one_frame_and_several_clips(kind: str) -> None:
    vae = random_vae(kind).double()
    pixels = clip(kind, 9)
    for inputs in (pixels[:, :, :1], torch.cat([pixels, -pixels.flip(2)])):
        work_whole(vae)
        latents = encoded(vae, inputs)
        video = decoded(vae, latents)
        work_in_parts(vae)
        assert max(far(encoded(vae, inputs), latents), far(decoded(vae, latents), video)) < 1e-12


def test_frames_that_the_class_refuses_are_refused() -> None:
    vae = random_vae("ltx2 2.0")
    with pytest.raises(RuntimeError, match="unflatten"):
        encoded(vae, clip("ltx2", 12))
    work_in_parts(vae)
    with pytest.raises(ValueError, match="left over"):
        encoded(vae, clip("ltx2", 12))


@pytest.mark.parametrize("kind", ["wan", "hunyuan", "ltx2 2.3"])
def test_tiles_stay_the_tiles_of_the_class(kind: str) -> None:
    vae = random_vae(kind).double()
    pixels = clip(kind, 9, tiles=2)
    edge = pixels.shape[3]
    whole = encoded(vae, pixels)
    vae.enable_tiling(edge, edge, tile_sample_stride_height=edge, tile_sample_stride_width=edge)
    latents = encoded(vae, pixels)
    video = decoded(vae, latents)
    work_in_parts(vae, 2)
    assert max(far(encoded(vae, pixels), latents), far(decoded(vae, latents), video)) < 1e-12
    assert far(latents, whole) > 1e-3


def test_only_this_vae_works_in_parts() -> None:
    vae, other = random_vae("wan"), random_vae("wan")
    work_in_parts(vae, 1)
    assert "forward" not in vars(other.encoder)
    assert type(vae.encoder).forward is type(other.encoder).forward
    copied = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in copied.encoder.parameters():
            parameter.zero_()
    assert encoded(copied, clip("wan", 5)).std(dim=(2, 3, 4)).max() < 1e-6  # it works with its own weights
    assert encoded(vae, clip("wan", 5)).std(dim=(2, 3, 4)).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "encode", "decode"),
    [("wan", 0.75, 0.75), ("hunyuan", 0.5, 0.6), ("ltx2 2.0", 0.6, 0.6), ("ltx2 2.3", 0.67, 0.67)],
)
def test_peak_memory_falls_with_the_part(kind: str, encode: float, decode: float) -> None:
    """One frame at a time against the stock class, in shares of it; what is alive at a time is counted."""
    vae = random_vae(kind)
    pixels = clip(kind, FRAMES_OF[kind]).float()
    latents = encoded(vae, pixels)
    works: list[tuple[Callable[[], Any], float]] = [
        (lambda: encoded(vae, pixels), encode),
        (lambda: decoded(vae, latents), decode),
    ]
    for work, share in works:
        work_whole(vae)
        peaks = [peak_of(work)]
        for settings in SETTINGS:
            work_in_parts(vae, **settings)
            peaks.append(peak_of(work))
        assert peaks == sorted(peaks, reverse=True), peaks
        assert peaks[-1] < share * peaks[0], peaks


def peak_of(work: Callable[[], Any]) -> int:
    with torch.no_grad(), PeakMemory() as memory:
        work()
    return memory.peak


# Sizes, settings, the ladder -------------------------------------------------------------------------------------


def test_parts_are_as_long_as_free_memory_allows() -> None:
    frame = 96 * 480 * 832 * 4  # of the Wan VAE's outermost layer
    assert [frames_that_fit(gib * 2**30, frame) for gib in (1, 8, 24, 80)] == [1, 1, 5, MOST_FRAMES]
    assert frames_that_fit(None, frame) == FRAMES
    x = torch.empty(2, 3, 5, 480, 832, device="meta")
    assert Parts(None, False, 96).limit(x) == FRAMES  # so that results on the CPU do not depend on what else runs
    assert Parts(7, False, 96).limit(x) == 7


def test_settings_reach_the_vae_and_the_names_of_its_latents(make_config: MakeConfig) -> None:
    family, cpu = tk.family("sanavideo"), torch.device("cpu")
    plain = tk.resolve(make_config())
    assert "parts" not in family.vae_recipe(plain)
    assert "forward" not in vars(family.load_vae(plain, cpu).encoder)
    for setting, parts in (("vae_enable_patch_conv", (None, False)), ("vae_enable_temporal_roll", (1, True))):
        config = tk.resolve(make_config(**{setting: True}))
        assert not config.notes
        assert family.vae_recipe(config) == {**family.vae_recipe(plain), "parts": 1}
        vae = family.load_vae(config, cpu)
        for coder in (vae.encoder, vae.decoder):
            used = coder.forward.args[1]
            assert (used.frames, used.smallest) == parts
        pixels = clip("wan", 5).float()
        expected = family.encode_latents(family.load_vae(plain, cpu), pixels)
        torch.testing.assert_close(family.encode_latents(vae, pixels), expected, rtol=1e-5, atol=1e-5)


def test_a_vae_that_cannot_is_refused(make_config: MakeConfig) -> None:
    from diffusers import AutoencoderKLLTX2Video, AutoencoderKLWan

    tiny: dict[str, Any] = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]}
    residual = AutoencoderKLWan(**tiny, is_residual=True)
    config = tk.resolve(make_config(vae_enable_temporal_roll=True))
    with pytest.raises(ModelError, match=r"vae_enable_temporal_roll.*is_residual.*Fix: use vae_enable_tiling"):
        SanaVideo._ready(residual, config, torch.device("cpu"))
    with pytest.raises(ValueError, match="is_residual"):
        work_in_parts(residual)
    with torch.device("meta"):
        assert "decoder_inject_noise" in obstacle(AutoencoderKLLTX2Video(decoder_inject_noise=(True,) * 4))
        assert "timestep" in obstacle(AutoencoderKLLTX2Video(timestep_conditioning=True))
        assert not obstacle(AutoencoderKLLTX2Video())
    assert "Linear" in obstacle(torch.nn.Linear(1, 1))


class Tight(SanaVideo):
    """Its VAE runs out of memory unless a frame goes through it at a time."""

    def load_vae(self, config: tk.TrainConfig, device: torch.device) -> Any:
        vae = super().load_vae(config, device)
        encode = vae.encode

        def encode_if_it_fits(pixels: torch.Tensor) -> Any:
            if "forward" not in vars(vae.encoder):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return encode(pixels)

        vae.encode = encode_if_it_fits
        return vae


def test_parts_are_tried_before_tiles(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = tk.resolve(make_config())
    pixels = torch.randint(0, 256, (5, 64, 64, 3), generator=torch.Generator().manual_seed(4)).byte()
    [expected] = LatentEncoder(config, SanaVideo()).encode([pixels])
    with caplog.at_level(logging.WARNING, "tunerkit"):
        [made] = LatentEncoder(config, Tight()).encode([pixels])
    assert not isinstance(made, EncodingError)
    assert not isinstance(expected, EncodingError)
    assert (expected[1], made[1]) == ("", "in parts")
    torch.testing.assert_close(made[0]["latents"], expected[0]["latents"], rtol=1e-5, atol=1e-5)
    assert "now with a frame at a time, 1 at a time" in caplog.text
    rolled = LatentEncoder(tk.resolve(make_config(vae_enable_temporal_roll=True)), Tight())
    assert rolled.encode([pixels])[0][1] == ""  # pyright: ignore[reportIndexIssue]
    assert rolled._rungs == ("", "tiled", "cpu")
