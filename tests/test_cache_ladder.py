"""Encoding clips in little memory: smaller batches, tiles, the CPU, and what is remembered of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.cache.encode import EncodingError, LatentEncoder
from tunerkit.cache.entries import Cache
from tunerkit.devices import is_out_of_memory
from tunerkit.families.sana_video.family import SanaVideo

MakeConfig = Callable[..., tk.TrainConfig]


class TightVae(torch.nn.Module):
    """A VAE that has memory for so many pixel positions at a time: in the whole batch, tiled, on the CPU."""

    def __init__(self, vae: Any, whole: int, tiled: int, cpu: int, error: Exception) -> None:
        super().__init__()
        self.vae, self.room, self.error = vae, {"": whole, "tiled": tiled, "cpu": cpu}, error
        self.way = ""

    def enable_tiling(self) -> None:
        self.way = "tiled"
        # Tiles of 32 pixels, so that the small clips of the tests have several.
        self.vae.enable_tiling(32, 32, 24, 24)

    def to(self, *args: Any, **kwargs: Any) -> TightVae:
        if torch.device(args[0]).type == "cpu":
            self.way = "cpu"
        super().to(*args, **kwargs)
        return self

    def encode(self, pixels: torch.Tensor) -> Any:
        if pixels[:, 0].numel() > self.room[self.way]:
            raise self.error
        return self.vae.encode(pixels)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("vae",) else getattr(super().__getattr__("vae"), name)


class TightFamily(SanaVideo):
    """Sana whose VAE is a TightVae; `loads` counts how often it was loaded."""

    def __init__(self, whole: int, tiled: int, cpu: int, error: Exception | None = None) -> None:
        self.room = (whole, tiled, cpu, error or torch.OutOfMemoryError("CUDA out of memory"))
        self.loads = 0

    def load_vae(self, config: tk.TrainConfig, device: torch.device) -> Any:
        self.loads += 1
        return TightVae(with_random_weights(super().load_vae(config, device)), *self.room)


def with_random_weights(vae: Any) -> Any:
    """The demo's VAE sees 8 pixels at a time, and tiles make no difference to it; one with random weights sees more."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.2)
    return vae


def noise(frames: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (frames, size, size, 3), generator=torch.Generator().manual_seed(seed)).byte()


def directly(config: tk.TrainConfig, clip: torch.Tensor, *, tiled: bool) -> torch.Tensor:
    """Encoded with the stock class, normalised by hand."""
    from diffusers import AutoencoderKLWan

    vae: Any = AutoencoderKLWan.from_pretrained(str(config.pretrained_model_name_or_path), subfolder="vae")
    with_random_weights(vae)
    if tiled:
        vae.enable_tiling(32, 32, 24, 24)
    pixels = clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()[0]
    mean, std = (torch.tensor(vae.config[key]).view(-1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    return (mode - mean) / std


@pytest.mark.parametrize(
    ("room", "fallback"),
    [((5 * 64 * 64, 0, 0), ""), ((100, 2 * 5 * 64 * 64, 0), "tiled"), ((100, 200, 2 * 5 * 64 * 64), "cpu")],
)
def test_each_rung_of_the_ladder(make_config: MakeConfig, caplog, room: tuple[int, int, int], fallback: str) -> None:
    config = tk.resolve(make_config())
    clips = [noise(5, 64, 1), noise(5, 64, 2)]
    encoder = LatentEncoder(config, TightFamily(*room))
    with caplog.at_level(logging.WARNING, "tunerkit"):
        results = encoder.encode(clips)
    for clip, result in zip(clips, results, strict=True):
        assert not isinstance(result, EncodingError)
        tensors, how = result
        assert how == fallback
        assert tensors.keys() == {"latents"}
        expected = directly(config, clip, tiled=bool(fallback))
        torch.testing.assert_close(tensors["latents"], expected, rtol=1e-4, atol=1e-4)
    assert "out of memory while encoding 64x64, 5 frames, with the settings as given, 2 at a time" in caplog.text
    whole = directly(config, clips[0], tiled=False)
    assert (directly(config, clips[0], tiled=True) - whole).abs().max() > 0.01  # so the comparison says something


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 9 GiB"),
    ],
)
def test_next_clip_starts_as_configured_unless_it_is_as_large(make_config: MakeConfig, error: Exception) -> None:
    family = TightFamily(5 * 64 * 64, 5 * 96 * 96, 0, error)
    encoder = LatentEncoder(tk.resolve(make_config()), family)

    def how(size: int) -> str:
        [result] = encoder.encode([noise(5, size)])
        return "failed" if isinstance(result, EncodingError) else result[1]

    assert [how(96), how(96)] == ["tiled", "tiled"]
    assert family.loads == 1
    assert [how(64), how(64), how(96)] == ["", "", "tiled"]
    assert family.loads == 2  # tiling is undone by loading anew
    assert how(128) == "failed"
    assert how(32) == ""


def test_other_errors_are_of_one_clip_and_not_of_memory(make_config: MakeConfig) -> None:
    encoder = LatentEncoder(tk.resolve(make_config()), TightFamily(0, 0, 0, RuntimeError("kernel is broken")))
    [result] = encoder.encode([noise(5, 32)])
    assert isinstance(result, EncodingError)
    assert "kernel is broken" in str(result)
    assert not is_out_of_memory(RuntimeError("kernel is broken"))


def test_build_records_the_fallback_and_finds_the_entries_again(make_config: MakeConfig, monkeypatch, project) -> None:
    shutil.rmtree(project / "cache" / "vae")
    config = make_config(vae_batch_size=3)
    family = TightFamily(100, 10**9, 0)
    monkeypatch.setattr("tunerkit.families.get", lambda _: family)
    result = tk.build_cache(config, progress=False)
    samples = tk.inspect_dataset(config).samples
    assert result.fallbacks == {"tiled": len(samples)} == {"tiled": result.latents_encoded}
    assert f"{len(samples)} tiled" in str(result)
    namer = Cache(tk.resolve(config), family).namer
    names = {path.name.split(".")[0] for path in (project / "cache" / "vae").rglob("*.safetensors")}
    assert names == {namer.latents(sample, "tiled") for sample in samples}
    assert tk.build_cache(config, progress=False).latents_encoded == 0
