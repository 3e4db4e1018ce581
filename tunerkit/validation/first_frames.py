"""First frames of image-to-video renderings that were given none: rendered from the prompt once, and kept as PNGs.

`<stem>.png` is the picture, `<stem>.json` beside it says what it was rendered with and which bytes were written. Both
decide together what a later round or a resumed run does:

- the picture is there as the run wrote it, and the settings are the same: it is used again;
- it is there as the run wrote it, but the prompt or another setting changed: it is rendered anew;
- it is there, but is not what the run wrote: somebody put a picture of his own in its place. It is used, scaled and
  cropped like any given image, and never overwritten, whatever the settings are;
- it is missing: it is rendered anew, with the weights of that round. So deleting it is how to get another one.

The picture's digest is part of a rendering's record, so renderings from different pictures are not compared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import TunerkitError
from tunerkit.files import digest_file, read_json, replacing, write_json
from tunerkit.validation.inputs import read_frame

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

logger = logging.getLogger("tunerkit")
FOLDER = "first-frames"


class UnreadableFrameError(TunerkitError):
    """A picture in the folder of first frames cannot be read as an image."""


class FirstFrames:
    """The first frames of a run that are rendered from its prompts.

    Args:
        folder: the run's `validation` folder; the pictures are in `<folder>/first-frames`.
        facts: file name of a rendering without its ending -> what shapes the text-to-video rendering that its first
            frame is taken from; only of renderings that are given none.

    Raises:
        UnreadableFrameError: a picture that is there to be used is no image.
    """

    def __init__(self, folder: Path, facts: Mapping[str, dict[str, Any]]) -> None:
        self.folder, self.facts = folder / FOLDER, facts
        for stem, shaped in facts.items():
            if not self.is_due(stem):
                width, height = shaped["size"]
                self.read(stem, width, height)

    def is_due(self, stem: str) -> bool:
        """Whether the frame has to be rendered: it is missing, or the run rendered it from other facts."""
        if stem not in self.facts:
            return False
        path = self._path(stem)
        if not path.is_file():
            return True
        record = self._record(stem)
        return record.get("sha256") == digest_file(path) and record.get("facts") != self.facts[stem]

    def announce(self, count: int) -> None:
        """Say that `count` frames are going to be rendered, and how to give real ones."""
        logger.warning(
            "%d validation video(s) have no first frame given: it is rendered from the prompt and kept in %s. To give "
            "a real one, name images in validation_input, or set validation_using_datasets = true",
            count,
            self.folder,
        )

    def keep(self, stem: str, frame: np.ndarray, step: int) -> None:
        """Write a frame, uint8 `[H, W, 3]`, that was rendered after `step` optimizer steps.

        Raises:
            TunerkitError: the folder cannot be written.
        """
        from PIL import Image

        path = self._path(stem)
        try:
            path.unlink(missing_ok=True)  # killed after this, the run finds no picture, not one that looks foreign
            with replacing(path) as draft:
                Image.fromarray(frame).save(draft, format="PNG")
                record = {"facts": self.facts[stem], "step": step, "sha256": digest_file(draft)}
                write_json(self._record_path(stem), record)
        except OSError as error:
            raise TunerkitError(f"{path}: the first frame could not be written: {error}") from error

    def read(self, stem: str, width: int, height: int) -> Image.Image:
        """The frame, scaled to cover `width` x `height` and cropped around its centre.

        Raises:
            UnreadableFrameError: it is no image, or damaged.
        """
        path = self._path(stem)
        try:
            return read_frame(path, width, height)
        except OSError as error:
            raise UnreadableFrameError(
                f"{path} is not a readable image ({error}). Fix: put a whole PNG there, or delete the file to have the "
                "first frame rendered from the prompt"
            ) from error

    def source(self, stem: str) -> dict[str, Any]:
        """What renderings.json says of the frame: its file below the `validation` folder, and the SHA-256 of its bytes.

        The digest is None where the frame is yet to be rendered, so that nothing rendered before seems to have
        started from it. Empty for a rendering that is given its first frame.
        """
        if stem not in self.facts:
            return {}
        path = self._path(stem)
        return {
            "image": f"{FOLDER}/{path.name}",
            "image_sha256": None if self.is_due(stem) else digest_file(path),
        }

    def _record(self, stem: str) -> dict[str, Any]:
        """What the run wrote of the frame; empty where there is nothing, or nothing that can be read."""
        path = self._record_path(stem)
        try:
            record = read_json(path) if path.is_file() else {}
        except TunerkitError:
            return {}
        return record if isinstance(record, dict) else {}

    def _path(self, stem: str) -> Path:
        return self.folder / f"{stem}.png"

    def _record_path(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"
