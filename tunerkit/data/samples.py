"""What is decided about data: a source file, the sample made of it, and the row that explains it.

They are tuples: a large dataset has hundreds of thousands of them, which are made five times as fast as frozen
dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["video", "image"]
Decision = Literal["used", "dropped"]
Size = tuple[int, int]
"""(width, height) in pixels."""


class Source(NamedTuple):
    """What was found in a media file.

    Attributes:
        width, height: pixels as displayed: after rotation, and with non-square pixels stretched to square ones.
        fps: average frames per second; 0 for an image.
        frames: frames that are shown, counted from the packets of the stream; 1 for an image.
        duration: seconds from the first frame's start to the last frame's end; 0 for an image.
        rotation: degrees counter-clockwise that the file asks a player to turn the picture: 0, 90, 180 or 270.
        has_audio: whether the file has an audio stream.
        codec: name of the video codec or of the image format.
        size_bytes, mtime_ns: size and time of last change of the file.
        digest: fast content hash, hexadecimal (see `probe.content_digest`).
    """

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    rotation: int
    has_audio: bool
    codec: str
    size_bytes: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True)
class Mask:
    """Which part of a clip is learned: a clip or still beside it, white = learned, black = ignored.

    Attributes:
        file: absolute path of the mask.
        kind: a still holds for every frame; a clip's frames are taken by their number, like those of the sample.
        digest: fast content hash of the file, hexadecimal.
    """

    file: Path
    kind: Kind
    digest: str


class Sound(NamedTuple):
    """The sound that belongs to a sample, over exactly the time its frames last.

    Attributes:
        file: absolute path of the file that holds it: the clip itself, or a file of a dataset of sound.
        digest: fast content hash of that file, hexadecimal.
        start: where it begins, in seconds on that file's clock.
        seconds: how long it lasts: frames / fps.
        silent: there is none; silence stands in for it and has no share in the loss.
    """

    file: Path
    digest: str
    start: float
    seconds: float
    silent: bool = False


class Sample(NamedTuple):
    """A clip or image, or one window of a clip, with every decision about how it is used.

    Attributes:
        dataset: id of the dataset.
        file: absolute path of the media file.
        captions: at least one; one is drawn per visit.
        frame_indices: source frames in presentation order, one per output frame; an index may occur repeatedly.
        fps: frames per second of the output frames.
        size: (W, H) that the model sees, a legal multiple.
        resized: (W, H) that the source is scaled to; its aspect is the source's and it covers `size`.
        crop: (x, y) of the box of `size` inside `resized`.
        repeats: extra visits per epoch; 0 = visited once.
        is_i2v: whether the first frame may be given clean (image to video).
        frame_times: presentation time in seconds of each entry of `frame_indices`, by which a decoder
            recognises the frames. Empty where the file carries no usable timestamps: then frames are counted.
        window: number of this window among those taken of the clip, from 0.
        alternatives: above 1, the sample is one of so many windows of which every visit of the clip draws one
            (`video.frame_sampling = "random"`); they stand one after the other. 1 = visited by itself.
        mask: None = every position counts.
        sound: None = trained without sound.
    """

    dataset: str
    file: Path
    kind: Kind
    captions: tuple[str, ...]
    source: Source
    frame_indices: tuple[int, ...]
    fps: float
    size: Size
    resized: Size
    crop: tuple[int, int]
    repeats: int
    is_i2v: bool
    frame_times: tuple[float, ...] = ()
    window: int = 0
    alternatives: int = 1
    mask: Mask | None = None
    sound: Sound | None = None

    @property
    def bucket(self) -> str:
        """Samples of one bucket can share a batch: `832x480@81`, with sound `768x512@49+2.04s`."""
        picture = f"{self.size[0]}x{self.size[1]}@{len(self.frame_indices)}"
        return picture if self.sound is None else f"{picture}+{self.sound.seconds:.2f}s"

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.file.name

    @property
    def seconds(self) -> float:
        """Seconds that the used frames last at `fps`; 0 for an image."""
        return len(self.frame_indices) / self.fps if self.kind == "video" else 0.0


class ClipRow(NamedTuple):
    """One file of a dataset: what was decided and why.

    Attributes:
        reason: for a used file what is taken of it, for a dropped one why not.
        fix: what to change so that a dropped file is used; empty for a used one.
        source: None where the file could not be read.
        samples: what is made of the file, one per window; empty where it is dropped.
        cause: a few words that dropped files with the same trouble share (`too short`); empty for a used one.
    """

    dataset: str
    file: Path
    kind: Kind
    decision: Decision
    reason: str
    fix: str
    source: Source | None
    samples: tuple[Sample, ...] = ()
    cause: str = ""

    @property
    def sample(self) -> Sample | None:
        """The first of `samples`; None where the file is dropped."""
        return self.samples[0] if self.samples else None
