"""The settings as a whole: their names, and what forms are told of them."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

from config_documents import FIXTURES

from tunerkit.config import (
    AudioSettings,
    DatasetConfig,
    TrainConfig,
    VideoSettings,
    describe,
)
from tunerkit.config.choices import OPTIMIZERS
from tunerkit.config.fields import Group
from tunerkit.config.inactive import DATASET_INACTIVE, INACTIVE, INACTIVE_TYPES, REFUSED
from tunerkit.config.names import ALIASES, DATASET_ALIASES, INHERITED, IRRELEVANT, SUGGESTIONS, VIDEO_ALIASES


def test_the_list_of_settings_is_frozen() -> None:
    """A new knob is a conscious act: to accept one, let `python tests/test_config_names.py` rewrite the list."""
    frozen = (FIXTURES / "options.txt").read_text(encoding="utf-8").splitlines()
    assert option_names() == frozen


def option_names() -> list[str]:
    """Every setting, nested ones as they are called in messages."""
    return sorted(
        f"{place}{name}"
        for place, model in (
            ("", TrainConfig),
            ("datasets[].", DatasetConfig),
            ("datasets[].video.", VideoSettings),
            ("datasets[].audio.", AudioSettings),
        )
        for name in model.model_fields
    )


def test_tables_of_names_agree_with_the_settings() -> None:
    own, of_datasets = set(TrainConfig.model_fields), set(DatasetConfig.model_fields)
    of_videos = set(VideoSettings.model_fields)
    assert set(ALIASES.values()) <= own
    assert set(DATASET_ALIASES.values()) | set(INHERITED) <= of_datasets
    assert set(VIDEO_ALIASES.values()) <= of_videos
    assert set(INACTIVE) | set(REFUSED) <= own
    assert {name for name in DATASET_INACTIVE if "." not in name} <= of_datasets
    groups = {f"video.{name}" for name in of_videos} | {f"audio.{name}" for name in AudioSettings.model_fields}
    assert {name for name in DATASET_INACTIVE if "." in name} <= groups
    assert not (set(IRRELEVANT) | set(ALIASES) | set(INHERITED)) & own
    assert not set(SUGGESTIONS) & (own | set(ALIASES) | set(IRRELEVANT))
    assert {ALIASES.get(name, name) for name in SUGGESTIONS.values()} <= own | of_datasets | of_videos
    types = next(info for info in describe(DatasetConfig) if info.name == "dataset_type").choices
    assert set(INACTIVE_TYPES) <= set(types)


def test_optimizer_names_are_those_that_can_be_built() -> None:
    from tunerkit.training.optimizers import optimizer_names

    assert optimizer_names() == OPTIMIZERS


def test_every_setting_describes_itself_for_forms() -> None:
    infos = {info.name: info for info in describe()}
    assert set(infos) == set(TrainConfig.model_fields)
    for info in [*infos.values(), *describe(DatasetConfig), *describe(VideoSettings)]:
        assert len(info.description) > 10, info.name
        assert info.control == "choice" or not info.choices or info.optional or info.name == "evaluation_type"
    assert {info.group for info in infos.values()} == set(get_args(Group))
    rank = infos["lora_rank"]
    assert (rank.control, rank.minimum, rank.maximum, rank.default, rank.active) == ("integer", 1, 1024, 16, True)
    assert infos["mixed_precision"].choices == ("no", "fp16", "bf16")
    assert infos["output_dir"].control == "path"
    assert infos["datasets"].control == "group"
    assert not infos["ramtorch"].active


def test_the_settings_load_without_torch() -> None:
    code = (
        "import tunerkit.project, sys; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    (FIXTURES / "options.txt").write_text("\n".join(option_names()) + "\n", encoding="utf-8")
