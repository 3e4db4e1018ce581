"""The gallery without kernel and browser: what is read, what is sent and when, and the page that needs neither."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunerkit.validation.video_files import write_mp4
from tunerkit_widgets import surroundings
from tunerkit_widgets.gallery import ValidationGallery
from tunerkit_widgets.gallery_board import Column, probe, read_board, spread

RATE = 24000
STEPS = (0, 10, 20, 30)
PROMPT = "A <fox> & its tail"


def record(**changes: Any) -> dict[str, Any]:
    made = {"prompt": PROMPT, "image": None, "frames": 9, "fps": 16.0, "guidance": [3.0], "seed": 7, "size": [64, 48]}
    return made | changes


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A silent and a loud video of 9 frames, 64x48."""
    folder = tmp_path_factory.mktemp("videos")
    frames = np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), dtype=np.uint8)
    tone = np.sin(np.arange(RATE // 2) / 20)[:, None].astype(np.float32)
    silent = write_mp4(folder / "silent.mp4", frames, 16)
    loud = write_mp4(folder / "loud.mp4", frames[::-1], 16, tone, RATE)
    return {"silent": silent.read_bytes(), "loud": loud.read_bytes()}


@pytest.fixture
def run(tmp_path: Path, videos: dict[str, bytes]) -> Path:
    """Two prompts, one with sound, at four steps and with the EMA of the last."""
    for step in STEPS:
        names = {"fox-64x48-7.mp4": videos["silent"], "song-64x48-7.mp4": videos["loud"]}
        if step == STEPS[-1]:
            names["fox-64x48-7-ema.mp4"] = videos["silent"]
            names["fox-64x48-7-beside-base.mp4"] = videos["silent"]
        folder = tmp_path / "validation" / f"step-{step}"
        folder.mkdir(parents=True)
        for name, data in names.items():
            (folder / name).write_bytes(data)
        song = record(prompt="A song", guidance=[5.0 if step == 0 else 3.0])
        made = {name: song if name.startswith("song") else record() for name in names}
        (folder / "renderings.json").write_text(json.dumps(made))
    (tmp_path / "validation" / "step-last").mkdir()
    (tmp_path / "validation" / "first-frames").mkdir()
    return tmp_path


@pytest.fixture
def gallery(run: Path, monkeypatch: pytest.MonkeyPatch) -> ValidationGallery:
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    return ValidationGallery(run)


@pytest.fixture
def sent(gallery: ValidationGallery, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], list[bytes]]]:
    """Every message that goes to the page."""
    messages: list[tuple[dict[str, Any], list[bytes]]] = []
    monkeypatch.setattr(
        gallery.widget, "send", lambda content, buffers=None: messages.append((content, list(buffers or [])))
    )
    return messages


def ask(gallery: ValidationGallery, **content: Any) -> None:
    """What the page sends."""
    data = {"method": "custom", "content": content}
    gallery.widget._handle_msg({"content": {"data": data}, "buffers": []})


def edit(gallery: ValidationGallery, **state: Any) -> None:
    """What the page sends when its reader changes what is shown."""
    data = {"method": "update", "state": state, "buffer_paths": []}
    gallery.widget._handle_msg({"content": {"data": data}, "buffers": []})


def key_of(gallery: ValidationGallery, row: int, column: str) -> str:
    return gallery.widget.board["rows"][row]["cells"][column]


# The board -----------------------------------------------------------------------------------------------------


def test_the_board_has_a_row_per_prompt_and_a_column_per_step(run: Path) -> None:
    board = read_board(run)
    assert [column.id for column in board.columns] == ["0", "10", "20", "30", "30-ema"]
    assert board.columns[0].title == "base model"
    assert board.columns[-1].title == "step 30 (EMA)"
    fox, song = board.rows
    assert (fox.nickname, fox.prompt, fox.seed, fox.size) == ("fox", PROMPT, 7, (64, 48))
    assert list(fox.videos) == list(board.columns)
    assert [column.step for column in song.videos] == list(STEPS)
    assert fox.details() == "64x48, 9 frames, 16 fps, seed 7"
    assert song.details() == "64x48, 9 frames, 16 fps, seed 7, with sound"
    assert fox.different == ()
    assert song.different == ("guidance",)


def test_without_records_the_names_tell_what_they_can(run: Path, tmp_path: Path) -> None:
    for path in run.glob("validation/*/renderings.json"):
        path.write_text('{"torn')
    row = read_board(run).rows[0]
    assert (row.prompt, row.nickname, row.different) == ("", "fox", ())
    assert read_board(tmp_path / "none").rows == ()


def test_first_middle_and_last_columns_come_first() -> None:
    steps = [Column(0), *(Column(step, ema) for step in range(100, 900, 100) for ema in (False, True))]
    assert [column.id for column in spread(steps)] == ["0", "400", "800"]
    assert [column.id for column in spread(steps, 2)] == ["0", "800"]
    assert [column.id for column in spread([Column(0), Column(5, True), Column(9, True)])] == ["0", "5-ema", "9-ema"]
    assert spread([Column(4)]) == [Column(4)]
    assert spread([]) == []


# Messages ------------------------------------------------------------------------------------------------------


def test_three_columns_are_in_sight_and_no_video_is_sent_unasked(gallery: ValidationGallery, sent: list[Any]) -> None:
    assert gallery.widget.shown == ["0", "20", "30"]
    assert sent == []
    state = gallery.widget.get_state(["board", "shown", "words"])
    assert len(json.dumps(state)) < 6_000
    assert gallery.widget.board["rows"][0]["same"] == "same seed 7 at every step"
    assert gallery.widget.board["rows"][1]["same"] == ""
    assert "guidance" in gallery.widget.board["rows"][1]["different"]


def test_a_video_is_sent_when_it_is_asked_for(
    gallery: ValidationGallery, sent: list[Any], videos: dict[str, bytes]
) -> None:
    ask(gallery, ask="clip", key=key_of(gallery, 1, "30"))
    ((content, buffers),) = sent
    assert content == {
        "clip": key_of(gallery, 1, "30"),
        "name": "step-30-song-64x48-7.mp4",
        "frames": 9,
        "fps": 16.0,
        "sound": True,
    }
    assert buffers == [videos["loud"]]


def test_only_videos_of_the_board_are_sent(gallery: ValidationGallery, sent: list[Any], run: Path) -> None:
    ask(gallery, ask="clip", key=str(run / "validation" / "step-0" / "fox-64x48-7.mp4"))
    ask(gallery, ask="clip", key="../../etc/passwd")
    ask(gallery, ask="image", key="../x")
    ask(gallery, something="else")
    assert [set(content) for content, _ in sent] == [{"failed", "message"}] * 2
    assert all(not buffers for _, buffers in sent)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"no video"), lambda p: p.write_bytes(b"")]
)
def test_a_video_that_vanished_is_said_in_its_place(gallery: ValidationGallery, sent: list[Any], damage: Any) -> None:
    key = key_of(gallery, 0, "20")
    damage(gallery._clips[key])
    ask(gallery, ask="clip", key=key)
    assert sent == [({"failed": key, "message": "fox-64x48-7.mp4 is gone or cannot be read"}, [])]
    assert "base model" in gallery.static()


def test_a_refresh_shows_new_steps_and_keeps_what_the_reader_chose(
    gallery: ValidationGallery, run: Path, videos: dict[str, bytes]
) -> None:
    old = key_of(gallery, 0, "30")
    folder = run / "validation" / "step-40"
    folder.mkdir()
    (folder / "fox-64x48-7.mp4").write_bytes(videos["silent"])
    ask(gallery, ask="refresh")
    assert gallery.widget.shown == ["0", "20", "40"]
    assert key_of(gallery, 0, "30") == old

    edit(gallery, shown=["10", "40"])
    (run / "validation" / "step-30" / "fox-64x48-7.mp4").write_bytes(videos["loud"])
    ask(gallery, ask="refresh")
    assert gallery.widget.shown == ["10", "40"]
    assert key_of(gallery, 0, "30") != old, "a video that was rendered again is another one"


def test_a_comparison_takes_the_nearest_rendered_steps(gallery: ValidationGallery, tmp_path: Path) -> None:
    assert gallery.compare(0, 27) == (Column(0), Column(30))
    assert gallery.widget.wipe == {"row": "fox-64x48-7", "left": "0", "right": "30"}
    assert gallery.widget.shown == ["0", "30"]
    assert gallery.compare(0, 30, row=9) is None
    assert gallery.compare(29, 31) is None, "that is the same column twice"
    assert gallery.widget.wipe["right"] == "30"
    assert ValidationGallery(tmp_path / "none").compare(0, 10) is None


def test_the_first_frame_is_sent_for_image_to_video(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    (run / "validation" / "first-frames" / "fox-64x48-7.png").write_bytes(b"png")
    made = {"fox-64x48-7.mp4": record(image="first-frames/fox-64x48-7.png"), "song-64x48-7.mp4": record(image="a.jpg")}
    (run / "validation" / "step-30" / "renderings.json").write_text(json.dumps(made))
    gallery = ValidationGallery(run)
    fox, song = gallery.widget.board["rows"]
    assert (fox["image"], song["image"], song["image_name"]) == (True, False, "a.jpg")
    messages: list[Any] = []
    monkeypatch.setattr(gallery.widget, "send", lambda content, buffers=None: messages.append((content, buffers)))
    ask(gallery, ask="image", key=fox["id"])
    assert messages == [({"image": "fox-64x48-7"}, [b"png"])]


def test_an_unforeseen_error_is_shown(gallery: ValidationGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunerkit_widgets.gallery.read_board", lambda _: 1 / 0)
    ask(gallery, ask="refresh")
    assert "ZeroDivisionError" in gallery.widget.notice


# Static --------------------------------------------------------------------------------------------------------


def test_the_static_page_plays_first_and_last_and_shows_the_steps(run: Path) -> None:
    gallery = ValidationGallery(run)
    assert gallery.widget is None
    page = gallery.static()
    movies = re.findall(r"<video src='data:video/mp4;base64,([^']+)'", page)
    assert len(movies) == 4
    base = (run / "validation" / "step-0" / "fox-64x48-7.mp4").read_bytes()
    assert base64.b64decode(movies[0]) == base
    assert page.count("<img src='data:image/jpeg;base64,") == 2 * len(STEPS)
    assert "A &lt;fox&gt; &amp; its tail" in page
    assert "<fox>" not in page
    assert "Also rendered, not shown here: step 30 (EMA)." in page
    assert not re.search(r"<script|https?:|<source", page)


def test_the_static_page_leaves_out_posters_before_videos_and_says_so(run: Path) -> None:
    room = 150_000
    page = ValidationGallery(run, static_bytes=room).static()
    assert len(page) <= room
    assert page.count("<video") == 4
    assert page.count("<img") < 8
    assert "not shown here: step 10" in page
    least = ValidationGallery(run, static_bytes=1).static()
    assert least.count("<video") == 2
    assert "1 more prompts are not shown here." in least


def test_as_text_and_empty(run: Path, tmp_path: Path) -> None:
    lines = str(ValidationGallery(run)).splitlines()
    assert len(lines) == 2
    assert "base model, step 10, step 20, step 30, step 30 (EMA)" in lines[0]
    empty = ValidationGallery(tmp_path / "none")
    assert str(empty) == "No videos were rendered yet."
    assert "No videos" in empty.static()
    assert probe(tmp_path / "none.mp4") is None
