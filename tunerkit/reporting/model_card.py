"""The page of an uploaded model: what it was made from and how, what it renders, and how it is used."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunerkit import families

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.base import Family

UNSAFE = "not-for-all-audiences"
"""The hub's mark for content that is not shown to everybody."""
GALLERY_TAG = "template:sd-lora"
"""Makes the hub show the samples of an adapter in a row at the top."""


@dataclass(frozen=True)
class Sample:
    """A rendered video of the page.

    Attributes:
        file: its path from the page, with slashes.
        prompt, seed: what was rendered.
        compared: whether the base model's video is in it, on the left.
    """

    file: str
    prompt: str
    seed: int
    compared: bool = False


def model_card(
    config: TrainConfig,
    repo_id: str,
    summary: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    comfyui: str | None,
) -> str:
    """The page as Markdown, with the metadata that the hub reads at its top.

    Args:
        config: resolved settings of the run.
        repo_id: where the model goes to, as owner/name.
        summary: the run in figures, as `tunerkit.running.results.summarised` gives them.
        samples: rendered videos that lie beside the page.
        comfyui: name of the adapter file for ComfyUI, if there is one.
    """
    from huggingface_hub import ModelCardData

    family = families.get(str(config.model_family))
    data = ModelCardData(**_metadata(config, family, samples))
    name = repo_id.partition("/")[2] or repo_id
    sections = [
        f"# {name}",
        _opening(config, family),
        (config.model_card_note or "").strip(),
        _samples(samples),
        _triggers(config),
        _use(config, family, repo_id, comfyui),
        "## Training\n\n" + _table(_training_rows(config, summary)) + "\n\nAll settings are in "
        "[config.json](config.json).",
        "## Licence\n\nThe licence of the base model applies to what is made from it: "
        f"[{base_model(config, family)}](https://huggingface.co/{base_model(config, family)}). The rights to the "
        "training clips are those of their owners.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def base_model(config: TrainConfig, family: Family) -> str:
    """The hub's name of the base model; for a local folder that of its flavour."""
    flavour = family.flavours.get(str(config.model_flavour)) or family.flavours[family.default_flavour]
    return flavour.repo if _is_local(config) else str(config.pretrained_model_name_or_path)


def _is_local(config: TrainConfig) -> bool:
    given = str(config.pretrained_model_name_or_path or "")
    return not given or os.path.isabs(given) or os.path.exists(given) or given.count("/") != 1


def _metadata(config: TrainConfig, family: Family, samples: Sequence[Sample]) -> dict[str, Any]:
    lora, base = config.model_type == "lora", base_model(config, family)
    task = "image-to-video" if _from_images(config, family) else "text-to-video"
    tags = [task, family.name, "tunerkit", "diffusers", *(["lora", GALLERY_TAG] if lora else ["full-finetune"])]
    if not config.model_card_safe_for_work:
        tags.append(UNSAFE)
    shown = [{"text": sample.prompt, "output": {"url": sample.file}} for sample in samples if not sample.compared]
    triggers = _trigger_words(config)
    more = {"widget": shown} if shown else {}
    more |= {"instance_prompt": ", ".join(triggers)} if triggers else {}
    return {
        "base_model": base,
        "base_model_relation": "adapter" if lora else "finetune",
        "library_name": "diffusers",
        "pipeline_tag": task,
        "license": "other",
        "license_name": "license-of-the-base-model",
        "license_link": f"https://huggingface.co/{base}",
        "tags": tags,
        **more,
    }


def _from_images(config: TrainConfig, family: Family) -> bool:
    return family.image_to_video(config) or any(dataset.video.is_i2v for dataset in config.media_datasets)


def _opening(config: TrainConfig, family: Family) -> str:
    base = base_model(config, family)
    what = f"LoRA adapter (rank {config.lora_rank})" if config.model_type == "lora" else "fine-tuning of all weights"
    copy = "a local copy of " if _is_local(config) else ""
    return (
        f"A {what} for {family.title}, trained with [tunerkit](https://github.com/tunerkit/tunerkit) from {copy}"
        f"[{base}](https://huggingface.co/{base})."
    )


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    rows = [
        (_text(sample.prompt), str(sample.seed), f"[{'beside the base model' if sample.compared else 'video'}]"
         f"({sample.file})")
        for sample in samples
    ]  # fmt: skip
    return "## Samples\n\n<Gallery />\n\n" + _table(rows, ("prompt", "seed", "file"))


def _trigger_words(config: TrainConfig) -> list[str]:
    words = [dataset.instance_prompt.strip() for dataset in config.media_datasets if dataset.instance_prompt]
    return list(dict.fromkeys(word for word in words if word))


def _triggers(config: TrainConfig) -> str:
    words = _trigger_words(config)
    return "## Trigger words\n\n" + "\n".join(f"- {_text(word)}" for word in words) if words else ""


def _use(config: TrainConfig, family: Family, repo_id: str, comfyui: str | None) -> str:
    pipeline, base = family.pipeline_class().__name__, base_model(config, family)
    if config.model_type == "lora":
        lines = [f'pipe = {pipeline}.from_pretrained("{base}", torch_dtype=torch.bfloat16).to("cuda")']
        lines.append(f'pipe.load_lora_weights("{repo_id}")')
        imported = pipeline
    else:
        lines = [
            "dtype = torch.bfloat16",
            f'transformer = AutoModel.from_pretrained("{repo_id}", subfolder="transformer", torch_dtype=dtype)',
            f'pipe = {pipeline}.from_pretrained("{base}", transformer=transformer, torch_dtype=dtype).to("cuda")',
        ]
        imported = f"AutoModel, {pipeline}"
    lines += [
        'frames = pipe(prompt="...").frames[0]',
        f'export_to_video(frames, "video.mp4", fps={config.framerate:g})',
    ]
    head = ["import torch", f"from diffusers import {imported}", "from diffusers.utils import export_to_video", ""]
    code = "```python\n" + "\n".join([*head, *lines]) + "\n```"
    if comfyui:
        code += f"\n\nComfyUI: put [{comfyui}]({comfyui}) into `models/loras`."
    return f"## Use\n\n{code}"


def _training_rows(config: TrainConfig, summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was done, as (name, value)."""
    yield "steps", str(summary.get("step") or "")
    yield "batch size", f"{config.train_batch_size} x {config.gradient_accumulation_steps} accumulated"
    yield "learning rate", f"{config.learning_rate:g}, {config.lr_scheduler}, {config.lr_warmup_steps} steps of warmup"
    yield "optimizer", config.optimizer
    if config.model_type == "lora":
        yield "rank and alpha", f"{config.lora_rank} and {config.lora_alpha or config.lora_rank}"
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    packed = "" if config.base_model_precision == "no_change" else f", base model in {config.base_model_precision}"
    yield "precision", precision + packed
    for dataset in config.media_datasets:
        resolution, kind = config.resolution_of(dataset)
        size = "sizes of the model" if resolution is None else f"{resolution:g} ({kind})"
        frames = f", {dataset.video.num_frames} frames" if dataset.video.num_frames else ""
        yield f"clips of {_text(dataset.id)}", f"{size}{frames}"
    for key, name in (
        ("final_loss", "training loss, mean of the last tenth"),
        ("first_evaluation", "loss at fixed noise, first"),
        ("best_evaluation", "loss at fixed noise, best"),
        ("final_evaluation", "loss at fixed noise, last"),
    ):
        if summary.get(key) is not None:
            at = f" (step {summary['best_step']})" if key == "best_evaluation" else ""
            yield name, f"{summary[key]:.5f}{at}"
    if summary.get("seconds_per_step") is not None:
        device = f" on {summary['device']}" if summary.get("device") else ""
        yield "seconds per step", f"{summary['seconds_per_step']:.3g}{device}"


def _table(rows: Sequence[tuple[str, ...]] | Iterator[tuple[str, str]], head: tuple[str, ...] = ("", "")) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(words: str) -> str:
    """Words of a person inside of a table: on one line, and nothing in them that Markdown or HTML would obey."""
    plain = html.escape(" ".join(words.split()), quote=False)
    return "".join(f"\\{letter}" if letter in r"\|`*_[]" else letter for letter in plain)
