"""Weights that are streamed to where they stay: transformers from folders, shards and combined files, text encoders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

import tunerkit as tk
import tunerkit.families as families
from tunerkit.cache.keys import EntryNamer
from tunerkit.errors import ModelError
from tunerkit.memory import streamed_weights
from tunerkit.memory.quantised_linear import Quantised, QuantisedLinear, quantise_layers

CPU = torch.device("cpu")


@pytest.fixture
def config(pristine_project: Path) -> tk.TrainConfig:
    """Settings of a demo project."""
    return tk.load_config(pristine_project / "config.json")


def load(config: tk.TrainConfig, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    return families.get(str(config.model_family)).load_transformer(config.changed(**changes), dtype)


def stock(config: tk.TrainConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The transformer as diffusers loads it."""
    import diffusers

    folder = Path(str(config.pretrained_model_name_or_path)) / "transformer"
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder, torch_dtype=dtype)


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    ours, theirs = tensors_of(found), tensors_of(wanted)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].device) == (tensor.dtype, tensor.device), name
        assert torch.equal(ours[name], tensor), name


# Each family ---------------------------------------------------------------------------------------------------------


class Family:
    """Tests of one family's demo project; a class for each, so that each needs its own project alone."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_streamed_transformer_is_that_of_diffusers(self, config: tk.TrainConfig, dtype: torch.dtype) -> None:
        """Values, dtypes (some parts stay in float32), buffers that no file holds, mode."""
        ours, theirs = load(config, dtype), stock(config, dtype)
        assert_same(ours, theirs)
        assert not ours.training
        assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
            k: v for k, v in theirs.config.items() if k[0] != "_"
        }

    def test_quantised_on_the_way_is_quantised_afterwards(self, config: tk.TrainConfig) -> None:
        """And nothing outside of the blocks is, nor what steers them."""
        family = families.get(str(config.model_family))
        wanted = stock(config, torch.float32)
        names = family.quantised_layers(wanted)
        quantise_layers(wanted, names, "int8")
        assert_same(load(config, torch.float32, base_model_precision="int8"), wanted)
        left = [name for name, module in wanted.named_modules() if type(module) is torch.nn.Linear]
        assert left
        assert all("blocks" not in name or "modulation" in name or "gate_logits" in name for name in left)

    def test_a_quantised_text_encoder_says_nearly_the_same(self, config: tk.TrainConfig) -> None:
        of = families.get(str(config.model_family))
        wanted = of.encode_text(of.load_text_encoder(config, CPU), ["a red ball rolls"], "positive", config)[0]
        settings = {f"text_encoder_{number}_precision": "int8" for number in range(1, of.text_encoders + 1)}
        changed = config.changed(**settings)
        encoder = of.load_text_encoder(changed, CPU)
        found = of.encode_text(encoder, ["a red ball rolls"], "positive", changed)[0]
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            if tensor.is_floating_point():
                distance = float((found[name].float() - tensor.float()).norm() / tensor.float().norm())
                assert 0 < distance < 0.05, name
        components = {**encoder.components}
        for name in ("text_encoder", "text_encoder_2")[: of.text_encoders]:
            kinds = {
                path: module for path, module in components[name].named_modules() if hasattr(module, "in_features")
            }
            assert any(isinstance(module, QuantisedLinear) for module in kinds.values())
            for path, module in kinds.items():
                outside = "layers" not in path.split(".") or "vis" in path
                assert isinstance(module, QuantisedLinear) != outside, path

    def test_the_precision_is_part_of_a_cached_texts_name(self, config: tk.TrainConfig) -> None:
        of = families.get(str(config.model_family))
        assert "precision" not in of.text_recipe(config)
        name = EntryNamer(config, of).text("a cat", "positive")
        seen = {name}
        for number in range(1, 5):
            other = config.changed(**{f"text_encoder_{number}_precision": "nf4"})
            seen.add(EntryNamer(other, of).text("a cat", "positive"))
            noted = "no such text encoder" in " ".join(str(note) for note in tk.Trainer(other).config.notes)
            assert noted == (number > of.text_encoders)
        assert len(seen) == 1 + of.text_encoders
        assert EntryNamer(config.changed(base_model_precision="nf4"), of).text("a cat", "positive") == name


class TestSana(Family):
    """With the project of `config`."""


class TestLtx2(Family):
    @pytest.fixture
    def config(self, ltx2_projects: dict[str, Path]) -> tk.TrainConfig:
        return tk.load_config(ltx2_projects["2.3-dev"])


class TestKandinsky5(Family):
    @pytest.fixture
    def config(self, kandinsky5_projects: Callable[[str], Path]) -> tk.TrainConfig:
        return tk.load_config(kandinsky5_projects("t2v-lite-sft-5s"))


# Transformers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_variants_and_pickled_files(config: tk.TrainConfig, tmp_path: Path, variant: str | None) -> None:
    wanted = stock(config)
    quantised = stock(config)
    quantise_layers(quantised, families.get("sanavideo").quantised_layers(quantised), "nf4")
    for name, options in {"shards": {"max_shard_size": "100KB"}, "pickled": {"safe_serialization": False}}.items():
        folder = tmp_path / name
        wanted.save_pretrained(folder / "transformer", variant=variant, **options)
        for file in sorted(Path(str(config.pretrained_model_name_or_path)).iterdir()):
            if file.name != "transformer":
                (folder / file.name).symlink_to(file)
        files = len(list((folder / "transformer").glob("*.safetensors")))
        assert files == 0 if name == "pickled" else files > 5
        changed = config.changed(pretrained_model_name_or_path=str(folder), variant=variant)
        assert_same(load(changed), wanted)
        assert_same(load(changed, base_model_precision="nf4"), quantised)


@pytest.mark.parametrize("precision", ["no_change", "int8"])
def test_the_combined_file_of_ltx2(ltx2_projects: dict[str, Path], tmp_path: Path, precision: str) -> None:
    from tunerkit.demo.ltx2_combined import write_combined

    config = tk.load_config(ltx2_projects["2.3-dev"])
    write_combined(Path(str(config.pretrained_model_name_or_path)), tmp_path / "combined.safetensors", "2.3")
    file = config.changed(pretrained_model_name_or_path=str(tmp_path / "combined.safetensors"))
    assert_same(load(file, base_model_precision=precision), load(config, base_model_precision=precision))


def test_a_hub_repository(config: tk.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index, then single file; one that was not downloaded before and cannot be now is as if it were not there."""
    folder, asked = Path(str(config.pretrained_model_name_or_path)), []

    def download(repository: str, name: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repository, name, revision))
        if not (folder / name).is_file():
            raise errors.LocalEntryNotFoundError("offline")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    changed = config.changed(pretrained_model_name_or_path="owner/name", revision="abc")
    assert_same(load(changed), load(config))
    assert [name for _, name, _ in asked] == [
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
    ]
    assert {(repository, revision) for repository, _, revision in asked} == {("owner/name", "abc")}


def test_damaged_files_are_named(config: tk.TrainConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model" / "transformer"
    source = Path(str(config.pretrained_model_name_or_path)) / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "diffusion_pytorch_model.safetensors")
    changed = config.changed(pretrained_model_name_or_path=str(tmp_path / "model"))
    file, index = (folder / f"diffusion_pytorch_model.safetensors{end}" for end in ("", ".index.json"))
    for content, words in (
        ({key: value for key, value in weights.items() if key != "proj_out.bias"}, r"lack 1 weights \(proj_out.bias"),
        ({**weights, "proj_out.bias": torch.zeros(3)}, r"proj_out.bias is \[3\], and its place is \[64\]"),
    ):
        save_file(content, file)
        with pytest.raises(ModelError, match=words):
            load(changed)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated"):
        load(changed)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"names gone.safetensors, which is not there"):
        load(changed)


def test_where_weights_go(config: tk.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta stands for a GPU: straight there unless parts are offloaded; quantised there unless the CPU is asked for."""
    gpu, config = torch.device("meta"), config.changed(base_model_precision="int8")
    monkeypatch.setattr(streamed_weights, "run_device", lambda _: gpu)
    for changes, device, on in (
        ({}, gpu, gpu),
        ({"quantize_via": "pipeline"}, gpu, gpu),
        ({"quantize_via": "cpu"}, gpu, CPU),
        ({"musubi_blocks_to_swap": 1, "gradient_checkpointing": True}, CPU, gpu),
        ({"enable_group_offload": True, "gradient_checkpointing": True}, CPU, gpu),
    ):
        where = streamed_weights.destination(config.changed(**changes), torch.float32)
        assert (where.device, where.quantise_on) == (device, on)
    layers: list[torch.device] = []
    pack = Quantised.fill
    monkeypatch.setattr(Quantised, "fill", lambda self, w, device: (layers.append(w.device), pack(self, w, device))[1])
    placed = load(config, quantize_via="cpu")
    assert {tensor.device for tensor in tensors_of(placed).values()} == {gpu}
    assert set(layers) == {CPU}


def test_pieces_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Many small pieces and one give the same tensors, none of which can change the file."""
    from safetensors.torch import save_file

    wanted = {f"w{place}": torch.randn(7, place + 1) for place in range(9)} | {"none": torch.empty(0, 3)}
    wanted |= {"half": torch.randn(3).to(torch.bfloat16), "flags": torch.tensor([True, False, True])}
    file = tmp_path / "w.safetensors"
    save_file(wanted, file)
    before = file.read_bytes()
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(streamed_weights, "_PIECE", size)
        found = dict(streamed_weights.stored([file]))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor)
            found[name].zero_()
    assert file.read_bytes() == before


MEASURE = """
import sys
import accelerate, torch
from pathlib import Path
from tunerkit.memory import streamed_weights
from tunerkit.memory.quantised_formats import FORMATS
from tunerkit.memory.streamed_weights import Destination, empty_model, fill, stored

def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

streamed_weights._PIECE = 8 << 20
make = lambda: torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(64)))
names = [str(place) for place in range(64)]
for precision in sys.argv[2:]:
    model = empty_model(make, torch.float32)
    if precision in FORMATS:  # what is imported with the first weight
        FORMATS[precision].pack(torch.ones(8, 64, dtype=torch.bfloat16))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    before = peak()
    assert not fill(model, stored([Path(sys.argv[1])]), Destination(torch.float32, precision=precision), names)
    print(peak() - before, sum(tensor.nbytes for tensor in model.state_dict().values()))
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured in /proc")
def test_loading_takes_little_more_than_the_model(tmp_path: Path) -> None:
    """Resident memory of a process that loads a file of 128 MiB; every weight is converted, so none stays mapped."""
    from safetensors.torch import save_file

    file, limits = tmp_path / "w.safetensors", {"nf4": 100e6, "no_change": 30e6}  # what quantising takes; a piece
    save_file({f"{place}.weight": torch.full((1024, 1024), 0.5, dtype=torch.bfloat16) for place in range(64)}, file)
    command = [sys.executable, "-c", MEASURE, str(file), *limits]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed is given back
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for (precision, more), line in zip(limits.items(), done.stdout.splitlines(), strict=True):
        peak, model = (int(word) for word in line.split())
        print(f"{precision}: model {model >> 20} MiB, peak {peak >> 20} MiB")
        assert model / 2 < peak < model + more
        assert more < 0.8 * file.stat().st_size
