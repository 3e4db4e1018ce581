"""The published dataset documents load as they are, and each of their keys changes what is decided about the clips."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_documents import QUICKSTARTS
from data_clips import write_clip

import tunerkit as tk

DOCUMENTS = sorted(QUICKSTARTS.glob("*.dataset.json"))
BY_NAME = {".".join(path.name.split(".")[:2]): path for path in DOCUMENTS}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that the documents decide about differently: length, speed, size, shape, caption."""
    folder = tmp_path_factory.mktemp("clips")
    for name, frames, fps, size in (
        ("long", 150, 25, (640, 360)),
        ("fast", 170, 30, (480, 480)),
        ("high", 140, 25, (360, 640)),
        ("large", 150, 25, (1280, 720)),
        ("small", 150, 25, (160, 96)),
        ("short", 30, 25, (640, 360)),
    ):
        write_clip(folder / f"{name}.mp4", frames, fps=fps, size=size, options={"preset": "ultrafast", "crf": "40"})
        (folder / f"{name}.txt").write_text(f"the {name} one, as written")
    return folder


def load(document: list[dict[str, Any]], clips: Path, tmp_path: Path, **settings: Any) -> tk.TrainConfig:
    entries = copy.deepcopy(document)
    for entry in entries:
        if "instance_data_dir" in entry:
            entry["instance_data_dir"] = str(clips)
    return tk.resolve(
        tk.TrainConfig(
            model_family="sanavideo",
            output_dir=tmp_path / "out",
            cache_dir=tmp_path / "cache",
            max_train_steps=1,
            data_backend_config=entries,
            **settings,
        )
    )


def decided(config: tk.TrainConfig) -> list[Any]:
    return [
        (row.file.name, row.decision, row.cause, [(s.dataset, s.bucket, s.captions, s.repeats) for s in row.samples])
        for row in tk.inspect_dataset(config).rows
    ] + [(s.resized, s.crop, s.fps, s.frame_indices) for s in tk.inspect_dataset(config).samples]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_document_loads_and_decides_as_it_stands(path: Path, clips: Path, tmp_path: Path) -> None:
    document = json.loads(path.read_text())
    config = load(document, clips, tmp_path)
    (dataset,) = config.media_datasets
    report = tk.inspect_dataset(config)
    used = {sample.file.stem: sample for sample in report.samples}
    frames = tk.family("sanavideo").legal_frames(document[0]["video"]["num_frames"])
    assert {len(sample.frame_indices) for sample in used.values()} == {frames}
    assert "short" not in used
    assert used["long"].captions == ("the long one, as written",)
    assert {sample.repeats for sample in used.values()} == {document[0]["repeats"]}
    assert {sample.dataset for sample in used.values()} == {dataset.id} == {document[0]["id"]}
    assert config.text_cache_dir.as_posix().endswith(document[1]["cache_dir"])
    edge = document[0]["resolution"]
    for sample in used.values():
        width, height = sample.size
        assert width % 32 == height % 32 == 0
        assert abs((width * height) ** 0.5 / edge - 1) < 0.06


EFFECTS: list[tuple[str, str, Any]] = [
    ("ltx2.es", "caption_strategy", "filename"),
    ("ltx2.hi", "resolution", 256),
    ("ltx2.hi", "repeats", 0),
    ("ltx2.es", "id", "another-id"),
    ("ltx2.es", "dataset_type", "image"),
    ("ltx2.es", "video.num_frames", 49),
    ("ltx2.es", "video.min_frames", 13),
    ("ltx2.es", "video.frame_rate", 20),
    ("kandinsky5.hi", "video.frame_rate", 12),
    ("sana_video.hi", "resolution", 320),
    ("sana_video.hi", "resolution_type", "pixel"),
    ("sana_video.hi", "crop", True),
    ("sana_video.hi", "minimum_image_size", 64),
    ("sana_video.hi", "repeats", 5),
    ("sana_video.hi", "video.num_frames", 33),
]


@pytest.mark.parametrize(("name", "key", "value"), EFFECTS, ids=lambda value: str(value))
def test_each_key_changes_a_decision(name: str, key: str, value: Any, clips: Path, tmp_path: Path) -> None:
    document = json.loads(BY_NAME[name].read_text())
    before = decided(load(document, clips, tmp_path))
    entry = document[0]
    *groups, last = key.split(".")
    for group in groups:
        entry = entry[group]
    assert last in entry, f"{key} is no key of {name}"
    assert entry[last] != value
    entry[last] = value
    assert decided(load(document, clips, tmp_path)) != before


def test_a_larger_clip_is_first_scaled_down_and_then_cropped(clips: Path, tmp_path: Path) -> None:
    """maximum_image_size and target_downsample_size of the Sana document."""
    document = json.loads(BY_NAME["sana_video.hi"].read_text())
    resized: dict[float, tuple[int, int]] = {}
    for target in (480, 700):
        document[0] |= {"maximum_image_size": 720, "target_downsample_size": target}
        report = tk.inspect_dataset(load(document, clips, tmp_path))
        resized[target] = next(s.resized for s in report.samples if s.file.stem == "large")
    assert abs((resized[700][0] * resized[700][1]) ** 0.5 - 700) < 2
    assert resized[480][0] < resized[700][0]
    document[0] |= {"maximum_image_size": 1200, "target_downsample_size": 700}  # 1280x720 is not larger than that
    report = tk.inspect_dataset(load(document, clips, tmp_path))
    assert next(s.resized for s in report.samples if s.file.stem == "large") == resized[480]


def test_frame_intervals_count_with_buckets_of_frames_only(clips: Path, tmp_path: Path) -> None:
    document = json.loads(BY_NAME["ltx2.es"].read_text())
    document[0]["video"] |= {"num_frames": 61, "min_frames": 13, "frame_interval": 24}
    by_shape = tk.inspect_dataset(load(document, clips, tmp_path))
    document[0]["video"]["bucket_strategy"] = "resolution_frames"
    by_frames = tk.inspect_dataset(load(document, clips, tmp_path))
    assert {len(s.frame_indices) for s in by_shape.samples} == {61, 29}
    assert {len(s.frame_indices) for s in by_frames.samples} == {49, 25}


PLACES: list[tuple[str, Callable[[tk.TrainConfig], Any], dict[str, Any], int]] = [
    ("cache_dir", lambda config: config.text_cache_dir, {"cache_dir": "elsewhere/text"}, 1),
    ("default and disabled", lambda config: config.text_cache_dir, {"disabled": True}, 1),
    ("cache_dir_vae", lambda c: c.vae_cache_dir(c.media_datasets[0]), {"cache_dir_vae": "elsewhere/vae"}, 0),
]


@pytest.mark.parametrize(("name", "place", "change", "entry"), PLACES, ids=[place[0] for place in PLACES])
def test_keys_that_name_folders(
    name: str, place: Callable[[tk.TrainConfig], Any], change: dict[str, Any], entry: int, clips: Path, tmp_path: Path
) -> None:
    document = json.loads(BY_NAME["sana_video.hi"].read_text())
    before = place(load(document, clips, tmp_path))
    document[entry] |= change
    assert place(load(document, clips, tmp_path)) != before, name


def test_keys_without_effect_here_are_said(clips: Path, tmp_path: Path) -> None:
    """Sound is not trained for this model, files are always looked up, every cache file is written at once."""
    japanese = load(json.loads(BY_NAME["ltx2.ja"].read_text()), clips, tmp_path)
    assert "datasets[0].audio" in {note.key for note in japanese.notes}
    document = json.loads(BY_NAME["sana_video.hi"].read_text())
    assert "datasets[0].metadata_backend" in {note.key for note in load(document, clips, tmp_path).notes}
    document[1]["write_batch_size"] = 7
    assert any("write_batch_size" in note.key for note in load(document, clips, tmp_path).notes)


def test_disabled_leaves_a_dataset_out(clips: Path, tmp_path: Path) -> None:
    document = json.loads(BY_NAME["ltx2.es"].read_text())
    document.append({**document[0], "id": "second", "disabled": True})
    assert {row.dataset for row in tk.inspect_dataset(load(document, clips, tmp_path)).rows} == {"my-video-dataset"}
    document[2]["disabled"] = False
    assert len({row.dataset for row in tk.inspect_dataset(load(document, clips, tmp_path)).rows}) == 2
