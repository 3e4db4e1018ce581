"""Text encoders streamed from their files: as transformers loads them, but without what is never read, and in few bits.

The models are the published ones with narrow layers. Independent of the code: transformers' own `from_pretrained`, the
names that older releases wrote, every tensor that is alive while a model is loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tunerkit as tk
from tunerkit.errors import ModelError
from tunerkit.families import text_files
from tunerkit.families.checkpoint_files import Source
from tunerkit.memory import streamed_weights
from tunerkit.memory.quantised_linear import QuantisedLinear, quantise_layers
from tunerkit.memory.quantised_text import UNREAD, leave_out_unread, text_layers

CPU = torch.device("cpu")
WORDS = 600
_BLOCKS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = {**_BLOCKS, "hidden_size": 80, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
_SIGLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_QWEN = {**_GEMMA, "hidden_size": 256, "layer_types": ["full_attention"] * 2}
_VISUAL = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 256}
_CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OF_QWEN = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
SMALL: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "gemma2": ("sanavideo", "text_encoder", _GEMMA, {"": "model."}),
    "gemma3": (
        "ltxvideo2",
        "text_encoder",
        {"text_config": _GEMMA, "vision_config": _SIGLIP, "image_token_index": 3},
        {
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
        },
    ),
    "qwen": (
        "kandinsky5-video",
        "text_encoder",
        {"text_config": _QWEN, "vision_config": _VISUAL, **_OF_QWEN},
        {"model.language_model.": "model.", "model.visual.": "visual."},
    ),
    "clip": ("kandinsky5-video", "text_encoder_2", _CLIP, {"": "text_model."}),
}
"""By a short name: family, component, how it is made smaller, beginnings of names and what older releases had there."""


def shrunk(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same architecture with narrow layers; what depends on no width (rotary embedding, ...) stays."""
    new = {key: shrunk(config[key], value) if isinstance(value, dict) else value for key, value in changes.items()}
    if "vocab_size" in config:
        new |= {"vocab_size": WORDS, **_SPECIAL}
    return {**config, **new}


def class_of(encoder: str) -> Any:
    family, component, _, _ = SMALL[encoder]
    of = tk.family(family)
    return getattr(transformers, of.published_config(of.default_flavour, component)["architectures"][0])  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each encoder: float32 in shards, like LTX-2's."""
    found: dict[str, Path] = {}
    for encoder, (family, component, changes, _) in SMALL.items():
        of = tk.family(family)
        config = shrunk(of.published_config(of.default_flavour, component), changes)  # pyright: ignore[reportArgumentType]
        torch.manual_seed(0)
        model = class_of(encoder)(transformers.AutoConfig.for_model(**config))
        for parameter in model.parameters():  # norms begin as ones, biases as zeros
            torch.nn.init.normal_(parameter, std=0.1)
        found[encoder] = tmp_path_factory.mktemp(encoder)
        model.save_pretrained(found[encoder], max_shard_size="100KB")
        assert len(list(found[encoder].glob("*.safetensors"))) > 1
    return found


def stock(folder: Path, encoder: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The encoder as transformers loads it."""
    return class_of(encoder).from_pretrained(folder, dtype=dtype)


def load(
    folder: Path, encoder: str, dtype: torch.dtype = torch.bfloat16, precision: str = "no_change", **settings: Any
) -> Any:
    number = 2 if encoder == "clip" else 1
    config = tk.TrainConfig(**{f"text_encoder_{number}_precision": precision, **settings})
    source = Source(str(folder), "pretrained_model_name_or_path", None)
    return text_files.load_text_model(class_of(encoder), config, source, dtype, CPU, number=number, subfolder="")


def states(model: Any) -> list[torch.Tensor]:
    """Hidden states of every layer for two texts, one of them padded on the left."""
    words = torch.arange(10, 34).view(2, 12)
    mask = torch.ones_like(words)
    mask[1, :5] = 0
    with torch.no_grad():
        return list(model(input_ids=words, attention_mask=mask, output_hidden_states=True).hidden_states)


def assert_same(found: Any, wanted: Any) -> None:
    """Weights and buffers that are read, configuration, mode, and the hidden states of every layer."""
    ours, theirs = ({**dict(model.named_parameters()), **dict(model.named_buffers())} for model in (found, wanted))
    assert ours.keys() == {name for name in theirs if not any(part in name for part in UNREAD)}
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.device) == (theirs[name].dtype, CPU), name
        assert torch.equal(tensor, theirs[name]), name
    settings = [{**model.config.to_dict(), "_name_or_path": ""} for model in (found, wanted)]
    assert settings[0] == settings[1]
    assert not found.training
    for one, other in zip(states(found), states(wanted), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder", SMALL)
def test_a_streamed_encoder_is_that_of_transformers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, encoder: str, dtype: torch.dtype
) -> None:
    theirs = stock(folders[encoder], encoder, dtype)
    monkeypatch.setattr(text_files, "load_component", None)  # it really is streamed
    assert_same(load(folders[encoder], encoder, dtype), theirs)


@pytest.mark.parametrize(("encoder", "precision"), [(name, "int8") for name in SMALL] + [("gemma3", "nf4")])
def test_quantised_on_the_way_is_quantised_afterwards(folders: dict[str, Path], encoder: str, precision: str) -> None:
    """The same codes, from weights in 16 bits, in every layer of a language model's blocks."""
    theirs = stock(folders[encoder], encoder)
    leave_out_unread(theirs)
    quantise_layers(theirs, text_layers(theirs), precision)
    ours = load(folders[encoder], encoder, precision=precision)
    assert_same(ours, theirs)
    linear = [module for module in ours.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) >= 12
    assert all(isinstance(module, QuantisedLinear) for module in linear)


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write(folder: Path, like: Path, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint in one file."""
    (folder / "config.json").write_bytes((like / "config.json").read_bytes())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("encoder", SMALL)
def test_names_of_several_releases(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, older: bool
) -> None:
    """In a single file as well; what is never read is not even mapped."""
    weights = {}
    for name, tensor in stock(folders[encoder], encoder, torch.float32).state_dict().items():
        now, then = next((item for item in SMALL[encoder][3].items() if name.startswith(item[0])), (name, name))
        if encoder != "gemma3" or name != "lm_head.weight":  # the same as its embedding
            weights[then + name.removeprefix(now) if older else name] = tensor
    write(tmp_path, folders[encoder], weights)
    read: list[str] = []
    monkeypatch.setattr(streamed_weights, "mapped", lambda file, entries: _noted(file, entries, read))
    monkeypatch.setattr(text_files, "load_component", None)
    assert_same(load(tmp_path, encoder), stock(tmp_path, encoder))
    assert_same(load(folders[encoder], encoder), stock(tmp_path, encoder))
    assert len(read) > 20
    assert not [name for name in read if any(part in name for part in UNREAD)]


_mapped = streamed_weights.mapped


def _noted(file: Path, entries: Any, read: list[str]) -> Any:
    for name, tensor in _mapped(file, entries):
        read.append(name)
        yield name, tensor


def test_files_that_only_transformers_can_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickled files, and names that mean the same weight twice: read whole, with the same outcome."""
    weights, wanted = whole(folders["gemma2"]), load(folders["gemma2"], "gemma2", precision="int8")
    twice = {**weights, "model.norm.weight": weights["norm.weight"].clone()}
    used: list[str] = []
    whole_load = text_files.load_component
    monkeypatch.setattr(text_files, "load_component", lambda *a, **k: (used.append("whole"), whole_load(*a, **k))[1])
    for number, content in enumerate((weights, twice)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, folders["gemma2"], content)
        if number == 0:
            torch.save(content, folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        assert_same(load(folder, "gemma2", precision="int8"), wanted)
    assert len(used) == 2


@pytest.mark.parametrize("precision", ["no_change", "int8"])
def test_files_that_lack_something_are_refused(folders: dict[str, Path], tmp_path: Path, precision: str) -> None:
    weights = whole(folders["gemma3"])
    used = {name: tensor for name, tensor in weights.items() if not any(part in name for part in UNREAD)}
    assert len(used) < len(weights)
    write(tmp_path, folders["gemma3"], used)
    assert_same(load(tmp_path, "gemma3"), load(folders["gemma3"], "gemma3"))
    lost = next(name for name in used if name.endswith("layers.1.mlp.up_proj.weight"))
    lacking = r"files lack 1 weights \(model.language_model.layers.1.mlp.up_proj.weight"
    for change, message in (
        ({}, rf"the text encoder's {lacking}"),
        ({lost.replace("layers.1", "layer.1"): used[lost]}, lacking),
        ({lost: torch.zeros(3, 3)}, r"layers.1.mlp.up_proj.weight is \[3, 3\], and its place is \[96, 80\]"),
    ):
        write(tmp_path, folders["gemma3"], {**{name: used[name] for name in used if name != lost}, **change})
        with pytest.raises(ModelError, match=message):
            load(tmp_path, "gemma3", precision=precision)


class Alive(TorchDispatchMode):
    """Bytes of tensors in RAM that operations made: those at present, and the most so far.

    What is mapped from a file is not among them, nor views of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        old = {_place(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device == CPU and _place(tensor) not in old:
                storage = tensor.untyped_storage()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._end, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return made

    def _end(self, size: int) -> None:
        self.bytes -= size


def _place(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_meta else tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(("precision", "more"), [("no_change", 0.02), ("int8", 0.2), ("nf4", 0.4)])
def test_loading_takes_little_more_than_the_model(tmp_path: Path, precision: str, more: float) -> None:
    """float32 in the file, 16 bits or fewer in RAM, of eight blocks: never the whole model in more bits."""
    of = tk.family("sanavideo")
    wide = {**_GEMMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12}
    changes = {**wide, "layer_types": ["full_attention"] * 12}
    config = shrunk(of.published_config(of.default_flavour, "text_encoder"), changes)
    torch.manual_seed(0)
    class_of("gemma2")(transformers.AutoConfig.for_model(**config)).save_pretrained(tmp_path)
    with Alive() as alive:
        model = load(tmp_path, "gemma2", precision=precision)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    print(f"{precision}: model {held / 1e6:.1f} MB, peak {alive.peak / 1e6:.1f} MB")
    in_16_bits = sum(entry.end - entry.start for entry in header_entries(tmp_path)) / 2
    assert held * 0.99 <= alive.bytes <= held * 1.05
    assert alive.peak < (1 + more) * held
    if precision != "no_change":
        assert alive.peak < 0.75 * in_16_bits


@pytest.mark.parametrize(("precision", "bytes_each"), [("no_change", 4), ("int8", 12)])
def test_what_will_be_offloaded_to_disk_is_never_in_ram(
    folders: dict[str, Path], tmp_path: Path, precision: str, bytes_each: int
) -> None:
    """Not even weights that change on the way: no more than converting the largest takes, and they are the same."""
    settings = {"group_offload_text_encoder": True, "group_offload_to_disk_path": tmp_path}
    wanted = load(folders["gemma3"], "gemma3", precision=precision)
    held = sum(parameter.nbytes for parameter in wanted.parameters())
    with Alive() as alive:
        found = load(folders["gemma3"], "gemma3", precision=precision, **settings)
    assert_same(found, wanted)
    assert alive.bytes < 0.05 * held
    largest = max(parameter.numel() for parameter in wanted.parameters())
    assert alive.peak < alive.bytes + bytes_each * largest
    assert not list(tmp_path.rglob("*.safetensors"))  # its files go with it


def header_entries(folder: Path) -> list[Any]:
    return [entry for file in folder.glob("*.safetensors") for entry in streamed_weights.header(file).tensors.values()]
