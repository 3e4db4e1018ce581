"""Whatever a preset fills in is accepted: in every family and flavour, whatever else was chosen before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import tunerkit as tk
from tunerkit_widgets.form_presets import PRESETS, changes_of, settings_of

CHOICES: dict[str, tuple[Any, ...]] = {
    "model_type": ("lora", "full"),
    "gradient_checkpointing": (True, False),
    "mixed_precision": ("bf16", "fp16", "no"),
    "use_dora": (False, True),
    "lora_init_type": ("default", "pissa"),
    "base_model_precision": ("no_change", "nf4"),
    "offloading": (
        {},
        {"musubi_blocks_to_swap": 2},
        {"enable_group_offload": True, "group_offload_type": "leaf_level"},
    ),
    "optimizer": ("torch-adamw", "adamw_bf16"),
    "optimizer_cpu_offload_method": ("none", "cpu"),
    "vae_enable_patch_conv": (False, True),
}


@pytest.fixture
def config(tmp_path: Path) -> tk.TrainConfig:
    """Settings of a run that could be of any family."""
    (tmp_path / "clips").mkdir()
    return tk.TrainConfig(
        model_family="sanavideo",
        output_dir=tmp_path / "output",
        max_train_steps=10,
        datasets=[{"id": "clips", "instance_data_dir": tmp_path / "clips", "video": {"num_frames": 25}}],
    )


def flavours() -> list[tuple[str, str]]:
    """Family and flavour of everything that can be trained."""
    return [
        (name, flavour)
        for name in tk.families.names()
        for flavour, one in tk.family(name).flavours.items()
        if not one.refused
    ]


def accepted(config: tk.TrainConfig, settings: dict[str, Any]) -> tk.TrainConfig | None:
    try:
        return tk.resolve(config.changed(**settings))
    except tk.ConfigError:
        return None


def settings_before() -> Iterator[dict[str, Any]]:
    """Some of what `CHOICES` makes together."""
    chance = random.Random(0)
    for _ in range(100):
        chosen = {name: chance.choice(values) for name, values in CHOICES.items()}
        yield {**chosen.pop("offloading"), **chosen}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_fills_in_is_accepted_in_every_flavour(preset: str, config: tk.TrainConfig) -> None:
    for (family, flavour), kind in product(flavours(), CHOICES["model_type"]):
        base = {
            "model_family": family,
            "model_flavour": flavour,
            "pretrained_model_name_or_path": tk.family(family).flavours[flavour].repo,
            "model_type": kind,
        }
        before = accepted(config, base)
        assert before is not None, base
        changes = changes_of(preset, lambda name, config=before: getattr(config, name))
        assert changes.keys() <= settings_of(preset)
        tk.resolve(config.changed(**base, **changes))
        assert ("enable_group_offload" in changes) == (preset == "aggressive" and kind == "lora")


@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_accepted_whatever_was_chosen_before(preset: str, config: tk.TrainConfig) -> None:
    """And chosen twice it changes nothing more."""
    tried = 0
    for settings in settings_before():
        if (before := accepted(config, settings)) is None:
            continue
        tried += 1
        changes = changes_of(preset, lambda name, config=before: getattr(config, name))
        after = accepted(config, {**settings, **changes})
        assert after is not None, (settings, changes)
        again = changes_of(preset, lambda name, config=after: getattr(config, name))
        assert all(getattr(after, name) == value for name, value in again.items()), (settings, again)
    assert tried > 20
