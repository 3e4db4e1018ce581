"""The rendered videos of a run as a board: a row per prompt, size and seed, a column per step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit_widgets.previews import facts, has_sound
from tunerkit_widgets.texts import text

VIDEO_NAME = re.compile(r"(?P<row>(?P<nickname>.+)-(?P<width>\d+)x(?P<height>\d+)-(?P<seed>\d+))(?P<ema>-ema)?\.mp4")
ROUND_NAME = re.compile(r"step-(\d+)")
RECORD = "renderings.json"
"""In the folder of a round: file name -> what shaped the video beside the trained weights."""
FIRST_COLUMNS = 3


@dataclass(frozen=True, order=True)
class Column:
    """The weights that videos were rendered with: those after `step` steps (0 = the base model), or their EMA."""

    step: int
    ema: bool = False

    @property
    def id(self) -> str:
        return f"{self.step}-ema" if self.ema else str(self.step)

    @property
    def title(self) -> str:
        if self.step == 0:
            return text("gallery.base")
        return text("gallery.ema" if self.ema else "gallery.step", step=self.step)


@dataclass(frozen=True)
class Row:
    """The videos of one prompt, size and seed.

    Attributes:
        id: the file name that they share, without its ending.
        nickname, prompt, seed: what was rendered; the prompt is empty where it was not recorded.
        size: (width, height) in pixels.
        videos: the file of each column that has one.
        different: names of recorded settings that are not the same in all of them, so that a comparison does not show
            the training alone.
        image: file of the first frame, for image to video; None without one, or where it is not in the run's folder.
        image_name: what the first frame is called; empty for text to video.
    """

    id: str
    nickname: str
    prompt: str
    seed: int
    size: tuple[int, int]
    videos: Mapping[Column, Path]
    different: tuple[str, ...] = ()
    image: Path | None = None
    image_name: str = ""

    @property
    def newest(self) -> Path:
        return self.videos[max(self.videos)]

    def nearest(self, step: int) -> Column:
        """The column of a step, or of the one closest to it that was rendered; without EMA where both are there."""
        return min(self.videos, key=lambda column: (abs(column.step - step), column))

    def details(self) -> str:
        """Size, frames, rate and seed in words, as far as the newest file can be read."""
        found = probe(self.newest)
        width, height = self.size
        if found is None:
            return text("gallery.size", width=width, height=height, seed=self.seed)
        words = text(
            "gallery.details",
            width=width,
            height=height,
            frames=found.frames,
            fps=f"{found.fps:g}",
            seed=self.seed,
        )
        return text("gallery.heard", details=words) if found.sound else words


@dataclass(frozen=True)
class Board:
    """All videos of a run; columns by rising step, rows by name."""

    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Number of frames, frames per second, and whether there is a sound track."""

    frames: int
    fps: float
    sound: bool


def probe(path: Path) -> Facts | None:
    """What a video file holds; None where it is gone or cannot be read."""
    try:
        return Facts(*facts(path), has_sound(path))
    except (OSError, ValueError, IndexError):  # PyAV's errors are kinds of the first two; no video stream: the third
        return None


def read_board(output_dir: Path) -> Board:
    """The videos below `output_dir/validation`; comparisons side by side are left out. Empty where there are none."""
    files: dict[str, dict[Column, tuple[Path, re.Match[str]]]] = {}
    records: dict[Column, dict[str, Any]] = {}
    for folder in (output_dir / "validation").glob("step-*"):
        number = ROUND_NAME.fullmatch(folder.name)
        if number is None:
            continue
        made = _record(folder)
        for path in folder.glob("*.mp4"):
            if name := VIDEO_NAME.fullmatch(path.name):
                column = Column(int(number[1]), ema=bool(name["ema"]))
                files.setdefault(name["row"], {})[column] = (path, name)
                records[column] = made
    rows = tuple(_row(name, found, records) for name, found in sorted(files.items()))
    return Board(tuple(sorted(records)), rows)


def spread(columns: Sequence[Column], count: int = FIRST_COLUMNS) -> list[Column]:
    """At most `count` columns, from first to last evenly spaced; EMA variants only where there is nothing else."""
    plain = [column for column in columns if not column.ema]
    offered = plain if len(plain) > 1 else list(columns)
    if len(offered) <= count:
        return offered
    if count == 1:
        return offered[-1:]
    return [offered[round(place * (len(offered) - 1) / (count - 1))] for place in range(count)]


def _row(name: str, found: Mapping[Column, tuple[Path, re.Match[str]]], records: Mapping[Column, Any]) -> Row:
    path, match = found[max(found)]
    made = [records[column].get(file.name) for column, (file, _) in sorted(found.items())]
    known = [one for one in made if isinstance(one, dict)]
    newest = known[-1] if known else {}
    image_name = str(newest.get("image") or "")
    image = path.parent.parent / image_name
    return Row(
        id=name,
        nickname=match["nickname"],
        prompt=str(newest.get("prompt") or ""),
        seed=int(match["seed"]),
        size=(int(match["width"]), int(match["height"])),
        videos={column: file for column, (file, _) in sorted(found.items())},
        different=tuple(sorted(_different(known))),
        image=image if image_name and image.is_file() else None,
        image_name=Path(image_name).name,
    )


def _different(records: Sequence[dict[str, Any]]) -> set[str]:
    """Settings that two records give differently; one that a record does not mention was not known then."""
    if not records:
        return set()
    last = records[-1]
    return {key for one in records for key in one.keys() & last.keys() if one[key] != last[key]}


def _record(folder: Path) -> dict[str, Any]:
    try:
        made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}
