"""Adapters as files that other programs load, checked by reading them back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunerkit.errors import CheckpointError, TunerkitError
from tunerkit.files import read_json, replacing
from tunerkit.training.weights import ADAPTER, adapter_state, load_adapter_state

if TYPE_CHECKING:
    import torch

    from tunerkit.families.base import Family
    from tunerkit.training.engine import Engine

LoraFormat = Literal["diffusers", "comfyui"]
LORA_FILE = "pytorch_lora_weights.safetensors"
STATE_FILE = "state.json"
"""In a checkpoint: the step, and what the run trained."""
PREFIX = {"diffusers": "transformer", "comfyui": "diffusion_model"}


def export_lora(engine: Engine, path: str | Path, format: LoraFormat = "diffusers") -> Path:
    """Write the adapter's current weights to `path` (a `.safetensors` file) and check what was written.

    Args:
        engine: the engine of a LoRA run.
        path: file to write; its folder is created.
        format: `"diffusers"`: keys `transformer.<module>.lora_A.weight`, rank and alpha in the file's metadata, loaded
            by `pipeline.load_lora_weights`. `"comfyui"`: keys `diffusion_model.<module>.lora_A.weight` with the
            original model's module names, at scale 1: alpha is multiplied into the weights.

    Raises:
        TunerkitError: if the run trains no LoRA, or the format or path is not usable.
        CheckpointError: if the file read back does not hold every trained module.
    """
    if engine.config.model_type != "lora":
        raise TunerkitError(
            "export_lora needs model_type = lora; a full fine-tuning is saved as transformer/ in output_dir"
        )
    path = _target(path, format)
    if format == "diffusers":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_diffusers_lora(engine, path.parent, path.name)
    else:
        _write_comfyui_lora(engine.family, *portable_adapter(engine), path)
    names = engine.family.comfyui_module if format == "comfyui" else str
    check_lora_file(path, engine.transformer, PREFIX[format], names)
    return path


def export_checkpoint(checkpoint: Path, path: str | Path, format: LoraFormat = "diffusers") -> Path:
    """Write the adapter of a checkpoint folder to `path`, as `export_lora` does, without loading the model.

    Raises:
        TunerkitError: if the checkpoint is that of a full fine-tuning, or the format or path is not usable.
    """
    from safetensors import safe_open

    from tunerkit import families

    source = checkpoint / LORA_FILE
    if not source.is_file():
        raise TunerkitError(
            f"{checkpoint.name} holds no adapter to export (model_type = full). Fix: use transformer/ in output_dir "
            "as it is, once the run is done"
        )
    path = _target(path, format)
    try:
        if format == "diffusers":
            with replacing(path) as temporary:
                shutil.copyfile(source, temporary)
            return path
        family = families.get(read_json(checkpoint / STATE_FILE)["fingerprint"]["family"])
        with safe_open(source, framework="pt") as file:
            state = {key.removeprefix(f"{PREFIX['diffusers']}."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()["lora_adapter_metadata"])
        named = {key.removeprefix(f"{PREFIX['diffusers']}."): value for key, value in config.items()}
        _write_comfyui_lora(family, state, named, path)
    except OSError as error:
        raise TunerkitError(
            f"{path} cannot be written ({error.strerror}). Fix: name a file in a folder you may write to"
        ) from error
    return path


def _target(path: str | Path, format: str) -> Path:
    """The file to write.

    Raises:
        TunerkitError: if the format is not known, or the file's name does not end as it must.
    """
    if format not in PREFIX:
        raise TunerkitError(f"format = {format!r} is not known. Fix: use 'diffusers' or 'comfyui'")
    path = Path(path)
    if path.suffix != ".safetensors":
        raise TunerkitError(f"{path} is not a .safetensors file name. Fix: write for example {path.name}.safetensors")
    return path


def write_diffusers_lora(engine: Engine, folder: Path, name: str = LORA_FILE) -> None:
    """The adapter through the pipeline's own LoRA mixin, with the metadata that keeps its strength (alpha, rank)."""
    state, config = portable_adapter(engine)
    with replacing(folder / name) as temporary:
        engine.family.pipeline_class().save_lora_weights(
            temporary.parent,
            transformer_lora_layers=state,
            transformer_lora_adapter_metadata=config,
            weight_name=temporary.name,
            safe_serialization=True,
        )


def portable_adapter(engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The adapter as it applies to the published base model: float32 weights on the CPU, and its peft configuration.

    PiSSA and OLoRA start from factors of the base weights and take them out of the base, so the trained factors alone
    would not fit the published model. Their change is `B A - B0 A0`, written as one adapter of twice the rank:
    `[B, -B0] [A; A0]` (Meng et al. 2024, arXiv 2404.02948, appendix on conversion).
    """
    import torch

    peft_config = engine.transformer.peft_config[ADAPTER]
    with engine.kept_weights():
        state = _float32(adapter_state(engine.transformer))
    # peft keeps sets; JSON has none.
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config.to_dict().items()}
    if not engine.initial_adapter:
        return state, config
    initial = _float32(engine.initial_adapter)
    joined = {}
    for key, value in state.items():
        sign, dim = (1.0, 0) if ".lora_A." in key else (-1.0, 1)
        joined[key] = torch.cat([value, sign * initial[key]], dim=dim).contiguous()
    growth = math.sqrt(2.0) if peft_config.use_rslora else 2.0  # keeps the scale alpha / rank (or alpha / sqrt(rank))
    doubled = {
        "r": 2 * peft_config.r,
        "lora_alpha": growth * peft_config.lora_alpha,
        "init_lora_weights": True,
    }
    return joined, {**config, **doubled}


def _write_comfyui_lora(
    family: Family, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], path: Path
) -> None:
    """Keys as the original model names its modules, and the adapter's scale multiplied into its second factor.

    ComfyUI takes an adapter without an `.alpha` at scale 1, and diffusers refuses files with one for some models.
    """
    from safetensors.torch import save_file

    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    tensors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        module, kind = _split(key)
        scaled = value * (config["lora_alpha"] / rank) if kind == "lora_B.weight" else value
        tensors[f"{PREFIX['comfyui']}.{family.comfyui_module(module)}.{kind}"] = scaled
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _split(key: str) -> tuple[str, str]:
    """The module of a weight of the adapter, and what kind of weight it is in ComfyUI's words."""
    for kind, written in (
        ("lora_A.weight", "lora_A.weight"),
        ("lora_B.weight", "lora_B.weight"),
        ("lora_magnitude_vector", "dora_scale"),
    ):
        if key.endswith(f".{kind}"):
            return key.removesuffix(f".{kind}"), written
    raise CheckpointError(f"the adapter's weight {key} has no place in this file. Fix: export format = diffusers")


def _float32(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies, in float32 on the CPU."""
    return {key: value.clone().float().cpu().contiguous() for key, value in state.items()}


def check_lora_file(path: Path, transformer: Any, prefix: str, names: Callable[[str], str] = str) -> int:
    """Read an exported adapter back: the number of its modules, each of which exists in `transformer`.

    Args:
        path: the file.
        transformer: the trained model.
        prefix: of the file's keys.
        names: what the file calls a module of the model.

    Raises:
        CheckpointError: naming the first module that is missing from the file or from the model.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
    suffix = ".lora_A.weight"
    written = {key.removeprefix(f"{prefix}.").removesuffix(suffix) for key in keys if key.endswith(suffix)}
    trained = {names(key.removesuffix(suffix)) for key in adapter_state(transformer) if key.endswith(suffix)}
    incomplete = {module for module in written if f"{prefix}.{module}.lora_B.weight" not in keys}
    modules = {names(name) for name, _ in transformer.named_modules()}
    for wrong, what in (
        (trained ^ written, "differs from"),
        (incomplete, "is incomplete in"),
        (written - modules, "is not in"),
    ):
        if wrong:
            raise CheckpointError(
                f"{path}: module {sorted(wrong)[0]} {what} the trained model ({len(written)} modules written, "
                f"{len(trained)} trained). Fix: export again"
            )
    return len(written)


def write_final(engine: Engine, folder: Path) -> Path:
    """The result of a run in `folder`: the path of the adapter file, or of the transformer's folder.

    With EMA, its weights are written beside the trained ones.
    """
    path = _write_result(engine, folder, LORA_FILE, "transformer")
    if engine.ema is not None:
        with engine.rendering(ema=True):
            _write_result(engine, folder, "ema_lora_weights.safetensors", "transformer_ema")
    return path


def _write_result(engine: Engine, folder: Path, lora_name: str, model_name: str) -> Path:
    if engine.config.model_type == "lora":
        return export_lora(engine, folder / lora_name)
    with engine.kept_weights():
        engine.transformer.save_pretrained(folder / model_name)
    return folder / model_name


def read_lora(engine: Engine, path: str | Path) -> None:
    """Start from an adapter file in diffusers layout (`init_lora`).

    Raises:
        CheckpointError: if the file cannot be read or does not fit this run's adapter.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"init_lora = {str(path)!r} cannot be read ({error}). Fix: name a LoRA file") from error
    prefix = f"{PREFIX['diffusers']}."
    load_adapter_state(
        engine.transformer,
        {key.removeprefix(prefix): value for key, value in state.items()},
        f"init_lora = {path}",
    )
    engine.weights.adopt()
