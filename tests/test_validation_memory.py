"""Too little memory while a video is decoded: it is decoded in another way, from the latents that are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

import tunerkit as tk
from tunerkit.demo.ltx2_vaes import averaging_video_vae
from tunerkit.families.ltx2.family import LTX2
from tunerkit.memory import vae_sizes
from tunerkit.memory.offload_encode import _OFFLOADERS
from tunerkit.planning.step import label
from tunerkit.planning.tracker import StorageTracker
from tunerkit.validation import render as rendering
from tunerkit.validation.vae_rescue import VaeRescue
from tunerkit.validation.video_files import read_mp4

MakeConfig = Callable[..., tk.TrainConfig]
RENDER: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": "A red square moves slowly to the right.",
    "validation_resolution": "96x64",
    "validation_num_video_frames": 9,
    "validation_num_inference_steps": 1,
    "validation_guidance": 1.0,
    "user_prompt_library": None,
    "disable_benchmark": True,
    "max_train_steps": 1,
}
OUT_OF_MEMORY: tuple[Exception, ...] = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("CUDA error: out of memory"),
)


@pytest.fixture
def trainer(make_config: MakeConfig) -> Iterator[tk.Trainer]:
    made = tk.Trainer(make_config(**RENDER, lora_rank=4)).prepare(progress=False)
    yield made
    made.close()


class Failing:
    """In place of a method of a VAE's class: fails as often as `left` says."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work, self.left, self.calls, self.error = work, 0, 0, OUT_OF_MEMORY[0]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return self.work(*arguments, **named)


@pytest.fixture
def decoding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Decoding with the VAE of a class that is named, or Sana's."""
    import diffusers

    kind = getattr(diffusers, getattr(request, "param", "AutoencoderKLWan"))
    failing = Failing(kind._decode)
    monkeypatch.setattr(kind, "_decode", lambda *arguments, **named: failing(*arguments, **named))
    return failing


def test_a_decode_that_runs_out_of_memory_is_repeated_in_less(
    trainer: tk.Trainer, decoding: Failing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each round fails once more often than the one before, and gives the same video; then none fails again."""
    loaded = trainer.loaded
    passes: list[int] = []
    loaded.engine.transformer.register_forward_hook(lambda *_: passes.append(1))
    trainer.step()
    [whole] = trainer.validate()
    expected = read_mp4(whole.path)
    assert all(one.grad is None for one in loaded.engine.weights.live.values())
    for failures, way in enumerate(("a frame at a time", "tiling", "the VAE on the CPU"), start=1):
        loaded.renderer._vae = VaeRescue(trainer.config, trainer.family, loaded.engine.device)
        decoding.left, decoding.calls, decoding.error = failures, 0, OUT_OF_MEMORY[failures % 2]
        caplog.clear()
        passes.clear()
        with caplog.at_level(logging.WARNING, "tunerkit"):
            [video] = trainer.validate()
        assert decoding.calls == failures + 1
        assert len(passes) == 1  # what was denoised is not denoised again
        assert abs(read_mp4(video.path).astype(int) - expected).max() <= 4  # of 255; compressed
        assert caplog.messages[-1].endswith(f"now with {way}; the video is not lost")
        assert len(caplog.messages) == failures
    caplog.clear()
    decoding.calls = 0
    assert len(trainer.validate()) == 1
    assert decoding.calls == 1
    assert not caplog.messages  # it is said once
    # A smaller video is tried as configured again.
    monkeypatch.setattr(rendering, "parse_sizes", lambda _: [(64, 64)])
    decoding.left = 1
    assert len(trainer.validate()) == 1
    assert "the settings as given: now with a frame at a time" in caplog.text


def test_the_plan_of_a_validation_is_what_it_takes(make_config: MakeConfig) -> None:
    """The whole of a stock pipeline, beside what training keeps."""
    settings = {"validation_resolution": "160x96", "validation_guidance": 4.0, "group_offload_vae": True}
    trainer = tk.Trainer(make_config(**{**RENDER, **settings}, lora_rank=4, device="cpu"))
    trainer.prepare(progress=False)
    trainer.step()
    loaded, tracker = trainer.loaded, StorageTracker("cpu")
    load = loaded.renderer._vae.load

    def counted() -> Any:
        with tracker.on_host():  # all that comes and goes while it is loaded
            vae = load()
        tracker.to_host(group.master.buffer for group in _OFFLOADERS[vae].groups)
        first = next(vae.parameters())  # is on the device all the time
        tracker._host.pop(first.untyped_storage()._cdata)
        tracker.label("weights", [first])
        return vae

    loaded.renderer._vae.load = counted
    with tracker:
        label(tracker, loaded.engine)
        tracker.mark("validation")
        assert len(trainer.validate()) == 1
    trainer.close()
    planned, measured = tk.plan(trainer.config).phase("validation"), tracker.segments()[-1]
    assert planned.peak == pytest.approx(measured.peak, rel=0.05)
    assert "gradients" not in measured.parts


def test_where_nothing_helps_the_training_goes_on(
    trainer: tk.Trainer, decoding: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    """The stock pipeline swallows torch's own error, and would then fail for want of a video."""
    decoding.left = 4
    with caplog.at_level(logging.WARNING, "tunerkit"):
        assert trainer.validate() == []
    assert "even in its smallest way, on the CPU" in caplog.text
    assert "training goes on. Lower validation_resolution" in caplog.text
    assert trainer.step().step == 1
    trainer.loaded.renderer._vae = VaeRescue(trainer.config, trainer.family, torch.device("cpu"))
    decoding.left, decoding.error = 1, KeyError("other")
    with pytest.raises(KeyError, match="other"):  # what is no lack of memory is no reason to try again
        trainer.validate()


class TinyLtx2(LTX2):
    """LTX-2 2.0 with a VAE that is not read from a file; tiles are 64 pixels wide, 2 latents."""

    def load_vae(self, config: tk.TrainConfig, device: torch.device) -> Any:
        torch.manual_seed(0)
        vae = averaging_video_vae("2.0")
        for edge in ("min_height", "min_width", "stride_height", "stride_width"):
            setattr(vae, f"tile_sample_{edge}", 64)
        return self._ready(vae, config, device)


@pytest.mark.parametrize("decoding", ["AutoencoderKLLTX2Video"], indirect=True)
def test_tiles_that_a_vae_cannot_work_on_are_passed_over(decoding: Failing, caplog: pytest.LogCaptureFixture) -> None:
    """The last tile is one latent wide, and the decoder of 2.0 mirrors the edge of two."""
    family, cpu = TinyLtx2(), torch.device("cpu")
    config = tk.TrainConfig(model_family=family.name, device="cpu")
    latents = torch.randn(1, 16, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = family.load_vae(config, cpu).decode(latents).sample
        vae = VaeRescue(config, family, cpu).load()
        decoding.left, decoding.calls = 2, 0
        found = vae.decode(latents, None, return_dict=False)[0]
    assert decoding.calls == 4
    assert not vae.use_tiling
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "RuntimeError" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("with tiling: now with the VAE on the CPU; the video is not lost")


def test_validation_offloads_the_vae_as_the_cache_does(make_config: MakeConfig) -> None:
    """The weights wait in RAM, where it is said, and the result is the same; the device here has its own memory."""
    family, cpu = tk.family("sanavideo"), torch.device("cpu")
    config = tk.resolve(make_config(group_offload_vae=True, vae_enable_patch_conv=True))
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = family.load_vae(tk.resolve(make_config()), cpu).decode(latents).sample
        vae = VaeRescue(config, family, cpu).load()
        torch.testing.assert_close(vae.decode(latents).sample, expected, rtol=1e-5, atol=1e-5)
        assert vae in _OFFLOADERS
        # On a GPU the length of a part follows from the GPU's memory, though most weights are on the CPU.
        elsewhere = VaeRescue(config, family, torch.device("meta")).load()
        asked: list[str] = []
        with mock.patch.object(vae_sizes, "free_memory", lambda device: asked.append(device.type)):
            made = elsewhere.decode(latents).sample
    assert made.is_meta
    assert set(asked) == {"meta"}
    assert sum(one.device.type == "cpu" for one in elsewhere.parameters()) > 10
