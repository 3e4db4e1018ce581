"""Rules of the dataset document beyond a single setting: masks, evaluation, probabilities, repositories."""

from __future__ import annotations

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
