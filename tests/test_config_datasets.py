"""Rules of the dataset document beyond a single setting: masks, evaluation, probabilities, repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunerkit.config.settings import TrainConfig
from tunerkit.errors import ConfigError

MASKS = {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": "masks"}


def clips(**settings: Any) -> dict[str, Any]:
    return {"id": "clips", "instance_data_dir": "clips", "caption_strategy": "filename", "resolution": 64, **settings}


def test_masks_and_evaluation_datasets_are_told_apart() -> None:
    config = TrainConfig(datasets=[clips(conditioning_data="masks"), MASKS, clips(id="held-out", dataset_type="eval")])
    assert [d.id for d in config.media_datasets] == ["clips"]
    assert [d.id for d in config.eval_datasets] == ["held-out"]
    assert [d.id for d in config.datasets if d.has_masks] == ["masks"]
    assert config.datasets[0].conditioning_ids == ("masks",)
    assert not config.notes


@pytest.mark.parametrize(
    ("datasets", "key", "words"),
    [
        ([clips(conditioning_data="mask"), MASKS], "conditioning_data", "no dataset"),
        ([clips(conditioning_data="masks"), {**MASKS, "disabled": True}], "conditioning_data", "without their masks"),
        ([clips(conditioning_data=["other"]), clips(id="other")], "conditioning_data", "not conditioning"),
        (
            [clips(conditioning_data="masks"), {**MASKS, "conditioning_type": "reference_strict"}],
            "conditioning_data",
            "by masks only",
        ),
        ([MASKS, clips()], "id", "no dataset of clips names it"),
        (
            [clips(conditioning_data="masks"), {**MASKS, "instance_data_dir": "clips"}],
            "conditioning_data",
            "its own mask",
        ),
        ([clips(minimum_aspect_ratio=3, maximum_aspect_ratio=2)], "minimum_aspect_ratio", "above"),
        ([clips(crop=True, crop_aspect="closest", crop_aspect_buckets=[1.0, 0.0])], "crop_aspect_buckets", "width"),
        ([clips(id="..")], "id", "no name for a folder"),
        ([clips(id="x" * 121)], "id", "longer than 120"),
        ([clips(probability=0)], "probability", "nothing to train on"),
        ([clips(type="huggingface")], "dataset_name", "owner/name"),
        ([clips(dataset_name="owner/name")], "dataset_name", "huggingface"),
        ([clips(id="held-out", dataset_type="eval", caption_strategy="instanceprompt")], "caption_strategy", "prompt"),
        ([clips(video={"frame_sampling": "tail"})], "frame_sampling", "head"),
        ([clips(video={"num_windows": 0})], "num_windows", "1"),
    ],
)
def test_bad_combinations_name_the_setting(datasets: list[dict[str, Any]], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(datasets=datasets)
    (problem,) = raised.value.problems
    assert problem.key == f"datasets[0].{key}" or problem.key == f"datasets[0].video.{key}"
    assert words in str(problem)


def test_settings_without_effect_are_said() -> None:
    config = TrainConfig(
        datasets=[
            clips(crop_aspect_buckets=[1.0], target_downsample_size=512),
            clips(id="held-out", dataset_type="eval", repeats=3),
        ]
    )
    assert {note.key for note in config.notes} == {
        "datasets[0].crop_aspect_buckets",
        "datasets[0].target_downsample_size",
        "datasets[1].repeats",
    }


def test_clips_may_not_hold_the_output_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(output_dir=tmp_path / "output", datasets=[clips(instance_data_dir=tmp_path)])
    assert "rendered videos would be trained on" in str(raised.value)


def test_a_framerate_of_the_run_does_not_hide_an_illegal_one() -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(framerate=16, datasets=[clips(video={"frame_rate": -4})])
    assert "video.frame_rate = -4" in str(raised.value)
