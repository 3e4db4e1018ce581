"""The LTX-2 demo with sound: stock pipelines run on both versions, and a small adapter learns picture and sound."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tunerkit import demo
from tunerkit.demo.ltx2_vaes import LATENT_GAIN, averaging_audio_vae, averaging_video_vae

VERSIONS = ("2.0", "2.3")
FLAVOURS = {"2.0": "dev", "2.3": "2.3-dev"}
SOUND_RATES = {"2.0": 24000, "2.3": 48000}
PLAIN: dict[str, Any] = {
    "guidance_scale": 3.0,
    "audio_guidance_scale": 3.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
}
"""Classifier-free guidance alone."""


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One project per version; nobody may write to them."""
    base = tmp_path_factory.mktemp("ltx2")
    state = torch.get_rng_state()
    demo.create(base / "2.0", family="ltxvideo2", clips="generated")
    shutil.copytree(base / "2.0", base / "2.3")
    demo.create(base / "2.3", family="ltxvideo2", clips="generated", model_flavour="2.3-dev")
    assert torch.equal(torch.get_rng_state(), state), "torch's random state was moved"
    return {version: base / version for version in VERSIONS}


@pytest.fixture(scope="module")
def pipelines(projects: dict[str, Path]) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    loaded = {version: DiffusionPipeline.from_pretrained(str(projects[version] / "model")) for version in VERSIONS}
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The checkpoints -----------------------------------------------------------------------------------------------


def test_another_process_writes_the_same_bytes(projects: dict[str, Path], tmp_path: Path) -> None:
    script = """
import shutil, sys
import tunerkit.demo as demo
older, newer = sys.argv[1:]
demo.create(older, family="ltxvideo2", clips="generated")
shutil.copytree(older, newer)
demo.create(newer, family="ltxvideo2", clips="generated", model_flavour="2.3-dev")
"""
    again = [tmp_path / version for version in VERSIONS]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, *map(str, again)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
    assert [tree(folder) for folder in again] == [tree(projects[version]) for version in VERSIONS]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_checkpoint_has_the_real_layout_and_geometry(
    projects: dict[str, Path], pipelines: dict[str, Any], version: str
) -> None:
    pipeline = pipelines[version]
    classes = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert classes == {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "vae": "AutoencoderKLLTX2Video",
        "audio_vae": "AutoencoderKLLTX2Audio",
        "text_encoder": "Gemma3ForConditionalGeneration",
        "tokenizer": "GemmaTokenizer",
        "connectors": "LTX2TextConnectors",
        "transformer": "LTX2VideoTransformer3DModel",
        "vocoder": "LTX2Vocoder" if version == "2.0" else "LTX2VocoderWithBWE",
    }
    folder = projects[version] / "model"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(classes)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 7_000_000
    assert (pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio) == (32, 8)
    sound = pipeline.audio_vae.config
    assert (sound.sample_rate, sound.mel_hop_length, sound.mel_bins, sound.in_channels) == (16000, 160, 64, 2)
    assert sound.base_channels == sound.latent_channels * sound.mel_bins // 4
    assert pipeline.transformer.config.audio_in_channels == sound.base_channels
    assert pipeline.transformer.config.rope_type == "split"
    assert pipeline.transformer.config.use_prompt_embeddings == (version == "2.0")
    assert pipeline.vocoder.config.output_sampling_rate == SOUND_RATES[version]
    scheduler = pipeline.scheduler.config
    assert (scheduler.base_shift, scheduler.max_shift, scheduler.shift_terminal) == (0.95, 2.05, 0.1)
    assert (scheduler.base_image_seq_len, scheduler.max_image_seq_len) == (1024, 4096)
    text = "".join(path.read_text("utf-8") for path in folder.rglob("*.json"))
    assert str(folder.parent) not in text


@pytest.mark.parametrize("version", VERSIONS)
def test_prompts_become_connector_features(pipelines: dict[str, Any], version: str) -> None:
    pipeline = pipelines[version]
    with torch.no_grad():
        states, mask, _, _ = pipeline.encode_prompt(["A red ball.", ""], None, False, device="cpu")
        video, audio, ones = pipeline.connectors(states, mask)
    assert states.shape == (2, 1024, 32 * 3)
    assert mask.sum(1).tolist()[1] == 1, "an empty prompt has no beginning token"
    assert video.shape == (2, 1024, 32 if version == "2.0" else 64)
    assert audio.shape == (2, 1024, 32 if version == "2.0" else 48)
    assert torch.isfinite(video).all()
    assert torch.isfinite(audio).all()
    assert (ones == 1).all()
    assert (video[0] - video[1]).abs().max() > 0.1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("image", [None, Image.new("RGB", (96, 64), (220, 40, 40))], ids=["t2v", "i2v"])
def test_stock_pipelines_make_video_and_sound(
    projects: dict[str, Path], pipelines: dict[str, Any], version: str, image: Image.Image | None
) -> None:
    from diffusers import LTX2ImageToVideoPipeline

    pipeline = pipelines[version]
    given: dict[str, Any] = {}
    if image is not None:
        pipeline = LTX2ImageToVideoPipeline.from_pretrained(str(projects[version] / "model"))
        pipeline.set_progress_bar_config(disable=True)
        given["image"] = image
    result: Any = pipeline(
        prompt="a red ball",
        negative_prompt="",
        height=64,
        width=96,
        num_frames=17,
        frame_rate=24.0,
        num_inference_steps=2,
        use_cross_timestep=version == "2.3",
        output_type="np",
        generator=torch.Generator().manual_seed(0),
        **given,
        **PLAIN,
    )
    frames, sound = result.frames[0], result.audio
    assert frames.shape == (17, 64, 96, 3)
    assert np.isfinite(frames).all()
    latents = round(17 / 24 * 25)
    assert sound.shape == (1, 2, (4 * latents - 3) * SOUND_RATES[version] // 100)
    assert torch.isfinite(sound).all()
    assert 0.005 < sound.std() < 0.5
    if image is not None:
        red, green, blue = frames[0].mean((0, 1))
        assert red > 1.5 * max(green, blue), "the picture that was given is not the first frame"


# The autoencoders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_video_vae_keeps_the_mean_colour_of_every_block(version: str) -> None:
    """Against the definition: latents are a fixed mixture of the means of 32x32 pixels x 8 frames."""
    vae = averaging_video_vae(version).eval()
    pixels = torch.rand(1, 3, 17, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    mean, std = (values.double().view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    assert mean.abs().max() > 0.1  # else nobody would notice a forgotten normalisation
    assert std.std() > 0.05
    blocks = pixels.double().unfold(3, 32, 32).unfold(4, 32, 32).mean((-1, -2))  # [1, 3, 17, 2, 3]
    colours = torch.cat([blocks[:, :, :1], blocks[:, :, 1:].unflatten(2, (2, 8)).mean(3)], 2)
    channel = np.arange(16)[:, None]
    mixing = torch.from_numpy(LATENT_GAIN * np.cos(np.pi * np.arange(1, 4) * (channel + 0.5) / 16))
    expected = torch.einsum("zc,bcthw->bzthw", mixing, colours)
    assert ((posterior.mode().double() - mean) / std - expected).abs().max() < 1e-4
    assert posterior.std.max() < 0.06


@pytest.mark.parametrize("version", VERSIONS)
def test_the_video_vae_round_trip_shows_the_picture(version: str) -> None:
    vae = averaging_video_vae(version).eval()
    ramp = torch.linspace(-0.9, 0.9, 192).view(1, 1, 1, 1, -1) * torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1, 1)
    for pixels in (ramp.expand(1, 3, 9, 128, 192), torch.full((1, 3, 9, 64, 64), 0.7)):
        with torch.no_grad():
            result = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        assert result.shape == pixels.shape
        error = (result - pixels).abs()
        assert error[..., 16:-16].max() < 0.1
        assert error.max() < 0.25  # a border has no neighbour to interpolate with


def test_the_audio_vae_keeps_the_mean_of_every_4_frames_and_4_bins() -> None:
    vae = averaging_audio_vae().eval()
    mel = torch.rand(1, 2, 101, 64, generator=torch.Generator().manual_seed(0)) * 14 - math.log(1e5)
    with torch.no_grad():
        latents = vae.encode(mel).latent_dist.mode()
        result = vae.decode(latents).sample
    frames = torch.cat([mel[:, :, :1], mel[:, :, 1:].unflatten(2, (25, 4)).mean(3)], 2)
    means = frames.unflatten(3, (16, 4)).mean(-1)
    assert latents.shape == (1, 2, 26, 16)
    assert (latents - means).abs().max() < 0.05
    assert result.shape == (1, 2, 4 * 26 - 3, 64)


def test_the_audio_vae_holds_frames_and_interpolates_bins() -> None:
    vae = averaging_audio_vae().eval()
    levels = torch.rand(1, 2, 26, 1, generator=torch.Generator().manual_seed(0)) * 6
    mel = levels.repeat_interleave(4, 2)[:, :, 3:] + torch.linspace(-11, -4, 64)  # the first latent has one frame
    with torch.no_grad():
        result = vae.decode(vae.encode(mel).latent_dist.mode()).sample
    error = (result - mel).abs()
    assert error[..., 2:-2].max() < 0.05
    assert error.max() < 0.25  # a quarter step of the ramp at its ends


# Clips, and learning from them ---------------------------------------------------------------------------------


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All frames at 192x128, and the sound as 16 kHz stereo [2, samples]."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(width=192, height=128, format="rgb24") for frame in container.decode(0)])
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "stereo", 16000)
        pieces = [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return frames, np.concatenate(pieces, axis=1)


def log_mel(waveforms: torch.Tensor) -> torch.Tensor:
    """[B, 2, samples] to [B, 2, T, 64]: magnitudes, 64 Slaney filters of 0..8 kHz, logarithm down to 1e-5."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(513, 64, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    spectrum = torch.stft(waveforms.flatten(0, 1), 1024, 160, window=torch.hann_window(1024), return_complex=True)
    mel = torch.from_numpy(filters).float().T @ spectrum.abs()
    return mel.clamp(min=1e-5).log().transpose(1, 2).unflatten(0, waveforms.shape[:2])


def test_the_pitch_belongs_to_the_shape(projects: dict[str, Path]) -> None:
    for path in sorted((projects["2.0"] / "clips").glob("*.mp4")):
        _, sound = decoded(path)
        assert sound.shape[1] / 16000 == pytest.approx(40 / 25, abs=0.05)
        loudness = np.abs(np.fft.rfft(sound[:, :16000].sum(0)))  # one second: a bin per Hz
        assert loudness.argmax() == (440 if "-ball-" in path.name else 165)
        start, end = (np.square(sound[:, part]).sum(1) for part in (slice(0, 4000), slice(-5000, -1000)))
        if "right" in path.name:  # from left to right
            assert start[0] > start[1]
            assert end[1] > end[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lora_learns_picture_and_sound(projects: dict[str, Path], pipelines: dict[str, Any], version: str) -> None:
    """x_t = (1 - s) x0 + s eps, target eps - x0 for both, timestep and sigma 1000 s; judged with noise that stays."""
    from peft import LoraConfig

    pipeline = pipelines[version]
    transformer, vae, audio_vae = pipeline.transformer, pipeline.vae, pipeline.audio_vae
    clips = [projects[version] / "clips" / f"{name}.mp4" for name in ("red-ball-right", "green-box-right")]
    films = [decoded(path) for path in clips]
    pixels = torch.from_numpy(np.stack([frames[:25] for frames, _ in films])).permute(0, 4, 1, 2, 3) / 127.5 - 1
    mel = log_mel(torch.from_numpy(np.stack([sound[:, :16000] for _, sound in films])))
    assert mel.shape == (2, 2, 101, 64)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        spectra = audio_vae.encode(mel).latent_dist.mode()
        prompts = [path.with_suffix(".txt").read_text("utf-8").strip() for path in clips]
        states, mask, _, _ = pipeline.encode_prompt(prompts, None, False, max_sequence_length=128, device="cpu")
        text, audio_text, mask = pipeline.connectors(states, mask)
    assert latents.shape == (2, 16, 4, 4, 6)
    assert spectra.shape == (2, 2, 26, 16)
    video = (latents.flatten(2).transpose(1, 2) - vae.latents_mean) / vae.latents_std
    audio = (spectra[:, :, :25].transpose(1, 2).flatten(2) - audio_vae.latents_mean) / audio_vae.latents_std
    assert 0.1 < video.square().mean() < 2
    assert 0.1 < audio.square().mean() < 2

    def losses(generator: torch.Generator) -> torch.Tensor:
        sigma = torch.sigmoid(torch.randn(2, generator=generator) + 1)
        noises = [torch.randn(clean.shape, generator=generator) for clean in (video, audio)]
        level = sigma.view(-1, 1, 1)
        noisy = [(1 - level) * clean + level * noise for clean, noise in zip((video, audio), noises, strict=True)]
        predicted = transformer(
            hidden_states=noisy[0],
            audio_hidden_states=noisy[1],
            encoder_hidden_states=text,
            audio_encoder_hidden_states=audio_text,
            encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask,
            timestep=sigma * 1000,
            sigma=sigma * 1000,
            num_frames=4,
            height=4,
            width=6,
            fps=25.0,
            audio_num_frames=25,
            return_dict=False,
        )
        pairs = zip(predicted, (video, audio), noises, strict=True)
        return torch.stack([(guess - (noise - clean)).square().mean() for guess, clean, noise in pairs])

    def judged() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([losses(torch.Generator().manual_seed(seed)) for seed in range(8)]).mean(0)

    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    try:
        trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-3)
        generator = torch.Generator().manual_seed(100)
        before = judged()
        for _ in range(50):
            optimizer.zero_grad()
            losses(generator).sum().backward()
            optimizer.step()
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)
        after = judged()
    finally:
        transformer.delete_adapters("default")
    print(f"video, sound: {before.tolist()} before, {after.tolist()} after 50 steps")
    assert (before < 3).all()
    assert (after < 0.7 * before).all()


# The documents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_documents_fit_the_family(projects: dict[str, Path], version: str) -> None:
    folder = projects[version]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["model_family"], config["model_flavour"]) == ("ltxvideo2", FLAVOURS[version])
    assert config["framerate"] == 24
    assert config["validation_num_video_frames"] % 8 == 1
    assert all(int(edge) % 32 == 0 and int(edge) >= 64 for edge in config["validation_resolution"].split("x"))
    dataset = json.loads((folder / config["data_backend_config"]).read_text("utf-8"))[0]
    assert dataset["audio"] == {"auto_split": True, "sample_rate": 16000, "channels": 2}
    assert dataset["video"]["num_frames"] % 8 == 1
    assert dataset["resolution"] >= 64


def test_the_other_version_replaces_only_the_model_and_the_documents(projects: dict[str, Path]) -> None:
    old, new = (tree(projects[version]) for version in VERSIONS)
    changed = {name.split("/")[0] for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    assert changed == {"model", "config.json", "demo.json"}
