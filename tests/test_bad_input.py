"""What goes wrong in practice: each ends with status 2 and one message that names the setting or file and the fix.

Nothing of the project may be lost by it: every file that was there before is there afterwards, byte for byte.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunerkit.cli import main
from tunerkit.training.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]
Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A mistake: what is done to the project, the command that meets it, and what its message must name."""

    name: str
    named: tuple[str, ...]
    words: tuple[str, ...] = ()
    prepare: Prepare = lambda _: None
    command: str = "train"


# What is done to a project -------------------------------------------------------------------------------------


def written(name: str, content: str | bytes) -> Prepare:
    """Write a file of the project."""

    def prepare(project: Path) -> None:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def removed(name: str) -> Prepare:
    def prepare(project: Path) -> None:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def edited(name: str, **changes: Any) -> Prepare:
    """Change values of a JSON file; of its first entry if it is a list."""

    def prepare(project: Path) -> None:
        path = project / name
        document = json.loads(path.read_text())
        (document[0] if isinstance(document, list) else document).update(changes)
        path.write_text(json.dumps(document))

    return prepare


def dataset(**changes: Any) -> Prepare:
    return edited("multidatabackend.json", **changes)


def one_clip(caption: str | bytes | None = "a rabbit", clip: bytes | None = None) -> Prepare:
    """Leave one clip, with this caption (None = no caption file), and with other content if `clip` is given."""

    def prepare(project: Path) -> None:
        kept, *others = sorted((project / "clips").glob("*.mp4"))
        for path in others:
            path.unlink()
        for path in (project / "clips").glob("*.txt"):
            path.unlink()
        kept = kept.rename(kept.with_name("only.mp4"))
        if clip is not None:
            kept.write_bytes(clip)
        if caption is not None:
            kept.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())

    return prepare


def other_vae(**changes: Any) -> Prepare:
    """A second VAE in `vae-of-another/`, with a changed configuration."""

    def prepare(project: Path) -> None:
        shutil.copytree(project / "model" / "vae", project / "vae-of-another" / "vae")
        edited("vae-of-another/vae/config.json", **changes)(project)

    return prepare


def transformer_weights(project: Path) -> Path:
    (path,) = (project / "model" / "transformer").glob("*.safetensors")
    return path


def truncated_weights(project: Path) -> None:
    path = transformer_weights(project)
    path.write_bytes(path.read_bytes()[:-1000])


def no_weights(project: Path) -> None:
    transformer_weights(project).unlink()


def duplicate_dataset(project: Path) -> None:
    path = project / "multidatabackend.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps([document[0], *document]))


def trained(project: Path) -> None:
    """A run of one step with its checkpoint."""
    assert main(["train", str(project), "max_train_steps=1", "validation_disable=true"]) == 0


def trained_with_another_model(project: Path) -> None:
    trained(project)
    path = transformer_weights(project)
    state = load_file(path)
    key = sorted(state)[0]
    save_file({**state, key: state[key] + 1}, path, metadata={"format": "pt"})


def trained_then_damaged(project: Path) -> None:
    trained(project)
    path = project / "output" / "checkpoint-1" / "trained.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


LIBRARY = "user_prompt_library.json"
CACHED_PROMPT = "A large grey cartoon rabbit stands in front of its burrow in a sunny green meadow."
FILE = written("file", "a regular file, in place of a folder")

EXPORT = "export {project} --format comfyui --output {project}"

CASES = [
    # Settings documents
    Case("no config", ("configuration", "nowhere"), command="train {project}/nowhere"),
    Case("folder without config", ("configuration", "config.json"), command="train {project}/clips"),
    Case("invalid JSON", ("config.json", "line 3"), prepare=written("config.json", '{\n  "seed": 1,\n}')),
    Case("config not UTF-8", ("config.json", "UTF-8"), prepare=written("config.json", b'{"seed": "\xe9"}')),
    Case("config is a list", ("config.json", "list"), prepare=written("config.json", "[]")),
    Case("unknown key", ("lerning_rate", "learning_rate"), ("lerning_rate=1e-4",)),
    Case("unknown key in a dataset", ("[0].instance_dir", "instance_data_dir"), prepare=dataset(instance_dir="x")),
    Case("wrong type", ("max_train_steps", "many"), ("max_train_steps=many",)),
    Case("wrong type in a dataset", ("datasets[0].video.num_frames",), prepare=dataset(video={"num_frames": "all"})),
    Case("wrong choice", ("model_type", "adapter", "lora"), ("model_type=adapter",)),
    Case("not a number", ("learning_rate",), ("learning_rate=nan",)),
    Case("negative", ("train_batch_size", "-1"), ("train_batch_size=-1",)),
    Case("rank too large", ("lora_rank", "100000"), ("lora_rank=100000",)),
    Case("steps and epochs", ("num_train_epochs", "max_train_steps"), ("max_train_steps=5", "num_train_epochs=2")),
    Case("neither steps nor epochs", ("max_train_steps",), ("max_train_steps=0",)),
    Case("warmup longer than the run", ("lr_warmup_steps",), ("lr_scheduler=linear", "lr_warmup_steps=500")),
    Case("all at once", ("lora_rank", "seed", "optimzer"), ("lora_rank=0", "seed=no", "optimzer=adam")),
    Case("unknown family", ("model_family", "sora", "sanavideo"), ("model_family=sora",)),
    Case("unknown flavour", ("model_flavour", "14b", "2b-480p"), ("model_flavour=14b",)),
    Case("no GPU", ("device", "cuda"), ("device=cuda:7",)),
    Case("unknown device", ("device", "gpu"), ("device=gpu",)),
    # Optimizers and adapters
    Case("unknown optimizer", ("optimizer", "torch-adamw"), ("optimizer=adamv",)),
    Case("unknown optimizer option", ("optimizer_config.epsilon", "eps"), ("optimizer_config=epsilon=1e-6",)),
    Case("missing extra", ("optimizer", "bitsandbytes", "tunerkit[bitsandbytes]"), ("optimizer=bnb-adamw8bit",)),
    Case("no such layers", ("peft_lora_target_modules", "to_nowhere"), ("peft_lora_target_modules=to_nowhere",)),
    Case("init_lora missing", ("init_lora", "lost"), ("init_lora={project}/lost.safetensors",)),
    Case("init_lora is no adapter", ("init_lora", "file"), ("init_lora={project}/file",)),
    # Datasets
    Case("dataset document missing", ("data_backend_config", "lost.json"), ("data_backend_config=lost.json",)),
    Case("dataset document no list", ("data_backend_config", "list"), prepare=written("multidatabackend.json", "{}")),
    Case("two datasets of one id", ("datasets[1].id", "demo-clips"), prepare=duplicate_dataset),
    Case("no dataset enabled", ("data_backend_config", "disabled"), prepare=dataset(disabled=True)),
    Case("missing folder", ("datasets[0].instance_data_dir", "lost"), prepare=dataset(instance_data_dir="lost")),
    Case("empty folder", ("instance_data_dir", "empty"), prepare=dataset(instance_data_dir="empty")),
    Case("file instead of a folder", ("instance_data_dir", "file"), prepare=dataset(instance_data_dir="file")),
    Case("broken mp4", ("only.mp4",), prepare=one_clip(clip=b"\0\0\0\x18ftypmp42" + bytes(500))),
    Case("zero-byte mp4", ("only.mp4",), prepare=one_clip(clip=b"")),
    Case("zero-byte caption", ("only.txt", "empty"), prepare=one_clip(caption=b"")),
    Case("caption not UTF-8", ("only.txt", "UTF-8"), prepare=one_clip(caption=b"caf\xe9 at night")),
    Case("caption missing", ("only.txt", "missing"), prepare=one_clip(caption=None)),
    Case("clips too short", ("video.min_frames", "801"), prepare=dataset(video={"num_frames": 801, "min_frames": 801})),
    Case("no instance prompt", ("instance_prompt",), prepare=dataset(caption_strategy="instanceprompt")),
    Case("no resolution", ("resolution",), prepare=dataset(resolution=None, resolution_type="pixel")),
    # Validation
    Case("frames at validation", ("validation_num_video_frames", "18", "17"), ("validation_num_video_frames=18",)),
    Case("size at validation", ("validation_resolution", "100x60"), ("validation_resolution=100x60",)),
    Case("no size at validation", ("validation_resolution", "large"), ("validation_resolution=large",)),
    Case("prompt library missing", ("user_prompt_library", "lost"), ("user_prompt_library=lost.json",)),
    Case("prompt library malformed", ("user_prompt_library", "line 1"), prepare=written(LIBRARY, "{'a': 1}")),
    Case("prompt that is no text", ("user_prompt_library", "'a'"), prepare=written(LIBRARY, '{"a": 1}')),
    Case(
        "first frame missing",
        ("validation_input", "lost.png"),
        ("validation_input={project}/frames.json",),
        written("frames.json", '[{"image": "lost.png", "prompt": "it runs"}]'),
    ),
    Case(
        "first frame is no image",
        ("file",),
        ("validation_input={project}/frames.json", "max_train_steps=1"),
        written("frames.json", json.dumps([{"image": "file", "prompt": CACHED_PROMPT}])),
    ),
    # Where things are written
    Case("output under a file", ("output_dir", "file"), ("output_dir={project}/file/output",)),
    Case("cache under a file", ("cache folder", "cache_dir"), prepare=dataset(cache_dir_vae="file/cache")),
    Case("csv under a file", ("--csv", "file"), command="dataset {project} --csv {project}/file/table.csv"),
    Case("demo in place of a file", ("file",), command="demo {project}/file"),
    Case("demo over own files", ("config.json",), (), written("own/config.json", "{}"), "demo {project}/own"),
    # Base models
    Case("model missing", ("pretrained_model_name_or_path", "lost"), ("pretrained_model_name_or_path=./lost",)),
    Case("model unreachable", ("pretrained_model_name_or_path", "me/mine"), ("pretrained_model_name_or_path=me/mine",)),
    Case(
        "model of another family",
        ("pretrained_model_name_or_path", "WanTransformer3DModel", "SanaVideoTransformer3DModel"),
        prepare=edited("model/transformer/config.json", _class_name="WanTransformer3DModel"),
    ),
    Case("model incomplete", ("transformer/config.json",), prepare=removed("model/transformer/config.json")),
    Case("model without weights", ("pretrained_model_name_or_path",), prepare=no_weights),
    Case("model cut short", ("pretrained_model_name_or_path",), prepare=truncated_weights),
    Case(
        "VAE of other channels",
        ("pretrained_vae_model_name_or_path", "48", "latent channels"),
        ("pretrained_vae_model_name_or_path={project}/vae-of-another",),
        other_vae(z_dim=48),
    ),
    Case(
        "VAE of another kind",
        ("pretrained_vae_model_name_or_path", "AutoencoderKLLTX2Video"),
        ("pretrained_vae_model_name_or_path={project}/vae-of-another",),
        other_vae(_class_name="AutoencoderKLLTX2Video"),
    ),
    # Checkpoints
    Case("resume from nothing", ("resume_from_checkpoint", "checkpoint-9"), ("resume_from_checkpoint=checkpoint-9",)),
    Case("checkpoint of another model", ("checkpoint-1", "base model"), prepare=trained_with_another_model),
    Case(
        "checkpoint damaged",
        ("checkpoint-1", "trained.safetensors"),
        ("resume_from_checkpoint=checkpoint-1",),
        trained_then_damaged,
    ),
    Case("checkpoint of another rank", ("checkpoint-1", "lora_rank"), ("lora_rank=4",), trained),
    Case("checkpoint of another optimizer", ("checkpoint-1", "optimizer"), ("optimizer=torch-sgd",), trained),
    Case("no checkpoint to export", ("output_dir",), command=f"{EXPORT}/a.safetensors"),
    Case("export under a file", ("a.safetensors cannot be written",), (), trained, f"{EXPORT}/file/a.safetensors"),
    Case("export to another suffix", ("--output", "a.bin"), command=f"{EXPORT}/a.bin"),
    Case("export of no adapter", ("model_type", "full"), ("model_type=full",), command=f"{EXPORT}/a.safetensors"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_one_message_and_nothing_lost(
    case: Case, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (project / "empty").mkdir()
    FILE(project)
    case.prepare(project)
    without_bitsandbytes(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = digests(project)
    capsys.readouterr()

    status = main([*words_of(case, project), *(word.format(project=project) for word in case.words)])

    out, err = capsys.readouterr()
    assert status == 2, err
    assert err.startswith("error: "), err
    assert sum(line.startswith(("error:", "warning:", "Traceback")) for line in err.splitlines()) == 1, err
    assert "Fix: " in err
    for word in case.named:
        assert word in err, err
    assert "Fix: " not in "".join(line for line in out.splitlines() if not line.strip().startswith("note:"))
    after = digests(project)
    assert {name: after.get(name) for name in before} == before


def words_of(case: Case, project: Path) -> list[str]:
    """The command with its arguments; the project itself where only the command is named."""
    text = case.command if " " in case.command else f"{case.command} {{project}}"
    return [word.format(project=project) for word in text.split()]


def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where that extra is not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "bitsandbytes" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def digests(project: Path) -> dict[str, str]:
    """Digest of every file, but for those that say what a run is doing or remember what was found in clips."""
    return {
        str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(project.rglob("*"))
        if path.is_file() and path.name not in (".lock", "status.json", "events.jsonl") and path.parent.name != "media"
    }


def test_output_folder_in_use(project: Path, capsys: Capture) -> None:
    other = RunFolder(project / "output")
    other.lock()
    try:
        assert main(["train", str(project), "validation_disable=true"]) == 2
    finally:
        other.close()
    err = capsys.readouterr().err
    assert err.startswith("error: output_dir = ")
    assert "is in use by process" in err
    assert "Fix: " in err


def test_one_bad_clip_among_good_ones_is_no_error(project: Path, capsys: Capture) -> None:
    """It is named and left out; the others are used."""
    written("clips/broken.mp4", b"not a video")(project)
    written("clips/broken.txt", "a caption")(project)
    assert main(["dataset", str(project)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "1 dropped" in out
    (line,) = [line for line in out.splitlines() if "broken.mp4" in line and "dropped" in line and "used," not in line]
    assert line.split()[0] == "demo-clips"
