"""What is said about files that are no combined file of LTX-2 2.0 or 2.3, or not a whole one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from ltx2_combined_files import SETTING, VERSIONS, rewrite, tiny_checkpoint
from safetensors.torch import load_file, save_file

from tunerkit.errors import ModelError
from tunerkit.families.ltx2.combined_file import CombinedFile


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints in diffusers layout, with their combined files."""
    return {version: tiny_checkpoint(tmp_path_factory.mktemp("ltx"), version) for version in VERSIONS}


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        CombinedFile(path, SETTING)
    message = str(caught.value)
    assert message.startswith(f"{SETTING} = {str(path)!r}: ")
    assert "Fix: " in message
    assert "\n" not in message
    return message


def test_a_truncated_file(folders: dict[str, Path], tmp_path: Path) -> None:
    content = (folders["2.0"] / "combined.safetensors").read_bytes()
    for kept, words in ((len(content) // 2, "is truncated"), (100, "only its beginning"), (3, "only its beginning")):
        path = tmp_path / f"{kept}.safetensors"
        path.write_bytes(content[:kept])
        assert words in refused(path)


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    for content in (
        torch.randint(0, 256, (4096,), dtype=torch.uint8).numpy().tobytes(),
        b"version https://git-lfs.github.com/spec/v1\n",
        b"",
        (9).to_bytes(8, "little") + b'{"a": [1]' + bytes(99),
        (10).to_bytes(8, "little") + b'{"a": [1]}' + bytes(99),
    ):
        path.write_bytes(content)
        assert "it is not a safetensors file" in refused(path)
    assert "No such file" in refused(tmp_path / "missing.safetensors")
    assert "Is a directory" in refused(tmp_path) or sys.platform != "linux"


def test_a_file_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"model.diffusion_model.patchify_proj.weight": torch.zeros(4, 4), "vae.x": torch.zeros(1)}, path)
    assert "it is no combined file of LTX-2" in refused(path)


def test_quantised_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    name = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    for version, file in (("2.0", "ltx-2-19b-dev.safetensors"), ("2.3", "ltx-2.3-22b-dev.safetensors")):
        for dtype in (torch.float8_e4m3fn, torch.uint8):
            with pytest.raises(ModelError, match=rf"{name} is (F8_E4M3|U8).* full. Fix: name the bf16 file: {file}"):
                rewrite(folders[version], tmp_path, add={name: torch.zeros(64, 64).to(dtype)})


def test_missing_unknown_and_misshapen_tensors(folders: dict[str, Path], tmp_path: Path) -> None:
    gone = "vae.encoder.down_blocks.1.conv.conv.bias"
    file = rewrite(folders["2.3"], tmp_path, drop=gone, add={"vae.decoder.more": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"video VAE lacks 1 tensor \(encoder.down_blocks.0.downsamplers.0.conv.*"):
        file.load("vae", torch.float32)
    with pytest.raises(ModelError, match=r"; it has 1 tensor \(vae.decoder.more\) that LTX-2 does not have. Fix: "):
        file.load("vae", torch.float32)
    file.load("transformer", torch.float32)  # nothing wrong with the others

    name = "model.diffusion_model.transformer_blocks.1.ff.net.0.proj.bias"
    misshapen = rewrite(folders["2.0"], tmp_path, add={name: torch.zeros(3)})
    with pytest.raises(ModelError, match=rf"transformer has 1 tensor \({name} \[3\]\) of another shape"):
        misshapen.load("transformer", torch.float32)

    sized = rewrite(folders["2.0"], tmp_path, drop="vae.decoder.up_blocks.1.conv.conv.weight")
    with pytest.raises(ModelError, match=r"video VAE lacks decoder.up_blocks.0.upsamplers.0.conv.conv.weight"):
        sized.load("vae", torch.float32)


def test_a_missing_layer_is_noticed_by_the_metadata(folders: dict[str, Path], tmp_path: Path) -> None:
    source = load_file(folders["2.3"] / "combined.safetensors")
    path = tmp_path / "short.safetensors"
    config = {"transformer": {"num_layers": 2, "num_attention_heads": 2, "caption_channels": 32}}
    kept = {name: tensor for name, tensor in source.items() if ".transformer_blocks.1." not in name}
    save_file(kept, path, metadata={"config": json.dumps(config)})
    with pytest.raises(ModelError, match=r"transformer lacks \d+ tensors \(.*, \.\.\.\)"):
        CombinedFile(path, SETTING).load("transformer", torch.float32)


def test_a_missing_component(folders: dict[str, Path], tmp_path: Path) -> None:
    source = load_file(folders["2.0"] / "combined.safetensors")
    path = tmp_path / "alone.safetensors"
    save_file({name: tensor for name, tensor in source.items() if name.startswith("model.")}, path)
    with pytest.raises(ModelError, match=r"it holds no video VAE. Fix: name a combined file"):
        CombinedFile(path, SETTING).load("vae", torch.float32)


def test_unusable_metadata(folders: dict[str, Path], tmp_path: Path) -> None:
    for config, words in (
        ("{", "is not JSON"),
        (json.dumps({"transformer": {"share_ff": True}}), "transformer.share_ff is True"),
        (json.dumps({"transformer": {"positional_embedding_max_pos": [1]}}), "cannot be used for the transformer"),
        (json.dumps({"transformer": 3}), "cannot be used for the transformer"),
        (json.dumps({"transformer": {"num_attention_heads": 0}}), "cannot be used for the transformer"),
    ):
        file = rewrite(folders["2.0"], tmp_path, metadata={"config": config})
        with pytest.raises(ModelError, match=words):
            file.load("transformer", torch.float32)


def test_later_versions(folders: dict[str, Path], tmp_path: Path) -> None:
    message = "of LTX-2.5, which cannot be trained here: its Gemma 4 text encoder.*Fix: use LTX-2.3 or 2.0"
    with pytest.raises(ModelError, match=message):
        rewrite(folders["2.3"], tmp_path, metadata={"model_version": "2.5.0"})
    added = {"model.diffusion_model.keyframes_abs_pos_embedding": torch.zeros(1, 64)}
    with pytest.raises(ModelError, match=message):
        rewrite(folders["2.3"], tmp_path, add=added)
    with pytest.raises(ModelError, match=message):
        rewrite(folders["2.3"], tmp_path, drop="model.diffusion_model.transformer_blocks.0.ff.net.2.bias")
    with pytest.raises(ModelError, match=message):
        rewrite(folders["2.3"], tmp_path, add={"duration_head.weight": torch.zeros(1)})
