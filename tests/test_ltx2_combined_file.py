"""LTX-2's combined file: the round trip, names, configurations, the real sizes, memory and identity."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from ltx2_combined_files import SETTING, VERSIONS, combined, rewrite, tiny_checkpoint
from ltx2_published import CLASSES, FULL, NAMES, RELEASED_23, TRANSFORMER_TENSORS
from safetensors.torch import load_file, save_file

from tunerkit.demo.ltx2_combined import original_metadata, original_name
from tunerkit.errors import ModelError
from tunerkit.families.ltx2.checkpoint import DiffusersCheckpoint, part_class
from tunerkit.families.ltx2.combined_file import CombinedFile
from tunerkit.families.ltx2.combined_names import COMPONENTS, Component, sort_names


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints in diffusers layout, with their combined files."""
    return {version: tiny_checkpoint(tmp_path_factory.mktemp("ltx"), version) for version in VERSIONS}


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON spells it, without what loading adds."""
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


# The round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_component_is_the_same_from_file_and_folder(
    folders: dict[str, Path], version: str, component: Component, dtype: torch.dtype
) -> None:
    ours = combined(folders[version]).load(component, dtype)
    stock = DiffusersCheckpoint(str(folders[version]), SETTING).load(component, dtype)
    assert type(ours) is type(stock)
    assert ours.training == stock.training
    assert plain(ours.config) == plain(stock.config)
    found, wanted = tensors_of(ours), tensors_of(stock)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
        assert found[name].requires_grad == tensor.requires_grad, name


@pytest.mark.parametrize("version", VERSIONS)
def test_version_and_flavour(folders: dict[str, Path], version: str) -> None:
    file = combined(folders[version])
    assert (file.version, file.unused) == (version, [])
    right, wrong = ("2.0", "2.3-dev") if version == "2.0" else ("2.3-dev", "dev")
    file.require_version(right)
    with pytest.raises(ModelError, match=rf"LTX-2 {version}, but model_flavour = '{wrong}'.*Fix: set model_flavour to"):
        file.require_version(wrong)


def test_the_weights_are_not_copied_where_the_precision_is_that_of_the_file(folders: dict[str, Path]) -> None:
    before = torch.get_default_dtype()
    model = combined(folders["2.3"]).load("vocoder", torch.float32)
    assert torch.get_default_dtype() == before
    assert not any(tensor.is_meta for tensor in tensors_of(model).values())
    assert model.resampler.filter.abs().sum() > 0


# Names ---------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    names, others = sort_names([*NAMES, "vae.per_channel_statistics.mean-of-stds", "lora.up.weight"])
    assert {original: ours for section in names.values() for ours, original in section.items()} == NAMES
    assert others == ["lora.up.weight"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_transformer_has_as_many_tensors_as_the_original(folders: dict[str, Path], version: str) -> None:
    names, _ = sort_names(load_file(folders[version] / "combined.safetensors"))
    assert len(names["transformer"]) == TRANSFORMER_TENSORS[version]


def test_names_agree_with_the_converters_in_diffusers(folders: dict[str, Path]) -> None:
    from diffusers.loaders import single_file_utils as stock

    tensors = load_file(folders["2.0"] / "combined.safetensors")
    names, _ = sort_names(tensors)
    converters: dict[Component, Any] = {
        "transformer": stock.convert_ltx2_transformer_to_diffusers,
        "vae": stock.convert_ltx2_vae_to_diffusers,
        "audio_vae": stock.convert_ltx2_audio_vae_to_diffusers,
    }
    for component, convert in converters.items():
        converted = convert({original: tensors[original] for original in names[component].values()})
        assert {ours: tensors[original].data_ptr() for ours, original in names[component].items()} == {
            ours: tensor.data_ptr() for ours, tensor in converted.items()
        }


# The real sizes ------------------------------------------------------------------------------------------------------


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None) -> Path:
    """A bf16 safetensors file of any size whose tensors take no room on the disk."""
    header: dict[str, Any] = {} if config is None else {"__metadata__": {"config": json.dumps(config)}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="module", params=VERSIONS)
def full_size(request: pytest.FixtureRequest) -> tuple[str, dict[Component, Any]]:
    """A version, and its published models without memory."""
    vocoder = "LTX2Vocoder" if request.param == "2.0" else "LTX2VocoderWithBWE"
    with init_empty_weights(include_buffers=True):
        return request.param, {
            component: part_class(CLASSES.get(component, vocoder))(**config)
            for component, config in FULL[request.param].items()
        }


def full_size_file(path: Path, models: Mapping[Component, Any], config: Mapping[str, Any] | None) -> CombinedFile:
    shapes = {
        original_name(component, name, model.config): tuple(tensor.shape)
        for component, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    assert len(shapes) == sum(len(model.state_dict()) for model in models.values())
    return CombinedFile(write_sparse(path, shapes, config), SETTING)


@pytest.mark.skipif(sys.platform == "win32", reason="files are not sparse there")
def test_the_published_models_load_from_a_file_larger_than_memory(
    tmp_path: Path, full_size: tuple[str, dict[Component, Any]]
) -> None:
    version, models = full_size
    configs: dict[Component, Any] = {component: plain(model.config) for component, model in models.items()}
    file = full_size_file(tmp_path / "full.safetensors", models, original_metadata(configs))
    assert file.version == version
    assert file.path.stat().st_size > 42e9
    for component, model in models.items():
        loaded = file.load(component, torch.bfloat16)
        assert plain(loaded.config) == configs[component]
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == wanted


@pytest.mark.skipif(sys.platform == "win32", reason="files are not sparse there")
@pytest.mark.parametrize("metadata", [None, RELEASED_23], ids=["without", "released"])
def test_configurations_of_the_published_files(
    tmp_path: Path, full_size: tuple[str, dict[Component, Any]], metadata: dict[str, Any] | None
) -> None:
    version, models = full_size
    if metadata is not None and version == "2.0":
        pytest.skip("known of 2.3 only")
    file = full_size_file(tmp_path / "full.safetensors", models, metadata)
    for component, model in models.items():
        found = file.config(component)
        assert found.pop("_class_name") == type(model).__name__
        assert {**plain(model.config), **found} == plain(model.config)  # nothing else is said,
        assert found.keys() >= FULL[version][component].keys()  # and nothing is left to the defaults of the class


def test_the_metadata_decides_what_no_tensor_shows(folders: dict[str, Path], tmp_path: Path) -> None:
    configs: dict[Component, Any] = {
        component: json.loads((folders["2.3"] / component / "config.json").read_text()) for component in COMPONENTS
    }
    config = original_metadata(configs)
    for name, settings in config["vae"]["decoder_blocks"]:
        if name != "res_x":
            settings["residual"] = True
    config["vae"]["decoder_spatial_padding_mode"] = "reflect"
    config["transformer"] |= {"rope_type": "INTERLEAVED", "frequencies_precision": "float32"}
    config["transformer"]["positional_embedding_max_pos"] = [10, 1024, 512]
    file = rewrite(folders["2.3"], tmp_path, metadata={"config": json.dumps(config)})
    vae, transformer = file.config("vae"), file.config("transformer")
    assert vae["upsample_residual"] == [True] * 4
    assert (vae["encoder_spatial_padding_mode"], vae["decoder_spatial_padding_mode"]) == ("zeros", "reflect")
    assert (transformer["rope_type"], transformer["rope_double_precision"]) == ("interleaved", False)
    assert [transformer[key] for key in ("pos_embed_max_pos", "base_height", "base_width")] == [10, 1024, 512]


# Memory --------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
import accelerate, safetensors.torch, torch
from tunerkit.families.ltx2.checkpoint import part_class
from tunerkit.families.ltx2.combined_file import CombinedFile

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

part_class("LTX2VideoTransformer3DModel")
torch.ones(8, dtype=torch.bfloat16).sum()
before = memory("VmRSS")
for dtype in (torch.bfloat16, torch.float32):
    model = CombinedFile(Path(sys.argv[1]), "file").load("transformer", dtype)
    total = sum(float(parameter.sum()) for parameter in model.parameters())
    print(memory("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters()), total)
    del model
"""


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of about half a gigabyte: a wide transformer of one layer, and connectors nearly as large."""
    parts: dict[Component, dict[str, Any]] = {
        "transformer": {
            "num_layers": 1,
            "num_attention_heads": 20,
            "attention_head_dim": 64,
            "cross_attention_dim": 1280,
            "audio_num_attention_heads": 20,
            "audio_attention_head_dim": 64,
            "audio_cross_attention_dim": 1280,
            "caption_channels": 1280,
            "rope_type": "split",
        },
        "connectors": {"video_connector_num_layers": 1, "audio_connector_num_layers": 0, "text_proj_in_factor": 1},
    }
    tensors: dict[str, torch.Tensor] = {}
    for component, config in parts.items():
        with init_empty_weights():
            model = part_class(CLASSES[component])(**config)
        for name, tensor in model.state_dict().items():
            original = original_name(component, name, model.config)
            tensors[original] = torch.full(tensor.shape, 0.5, dtype=torch.bfloat16)
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    metadata = {"transformer": {"num_attention_heads": 20, "audio_num_attention_heads": 20}}
    save_file(tensors, path, metadata={"config": json.dumps(metadata)})
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured in /proc")
def test_loading_takes_little_more_than_the_component(wide_file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(wide_file)], capture_output=True, text=True, check=True)
    for line, share in zip(done.stdout.splitlines(), (1, 2), strict=True):
        peak, component, total = (float(word) for word in line.split())
        print(f"peak {peak / 2**20:.0f} MiB, component {component / 2**20:.0f} MiB, {peak / component:.2f}")
        assert total > 0
        assert component > share * 200e6
        assert wide_file.stat().st_size > 1.5 * component / share
        assert peak < 1.3 * component


# Identity ------------------------------------------------------------------------------------------------------------


def test_identity_follows_the_component_and_not_its_place(folders: dict[str, Path], tmp_path: Path) -> None:
    file = combined(folders["2.0"])
    names, _ = sort_names(load_file(file.path))
    text = names["connectors"]["text_proj_in.weight"]
    changed = rewrite(
        folders["2.0"], tmp_path, add={text: load_file(file.path)[text] + 1, "model.more": torch.zeros(999)}
    )
    assert changed.unused == ["model.more"]
    assert file.identity(["vae"]) == changed.identity(["vae"])
    assert file.identity(["connectors"]) != changed.identity(["connectors"])
    assert file.identity(["vae", "audio_vae"]) != file.identity(["vae"])
    assert file.identity(["vae"]) != combined(folders["2.3"]).identity(["vae"])
