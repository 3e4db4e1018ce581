"""The captions of a clip: from a text file beside it, its name or the settings. Nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from tunerkit.errors import DatasetError

CaptionStrategy = Literal["textfile", "filename", "instanceprompt"]

MISSING, EMPTY, UNREADABLE = "no caption", "empty caption", "caption unreadable"
NOT_UTF8, NO_TEXT = "caption is not UTF-8", "caption is no text"
CAUSES = (MISSING, EMPTY, UNREADABLE, NOT_UTF8, NO_TEXT)
"""Why a clip has no caption, in a few words."""


@dataclass(frozen=True)
class CaptionRules:
    """The caption settings of a dataset, named as in the dataset document.

    `instance_prompt` has to hold words wherever another setting asks for it.
    """

    caption_strategy: CaptionStrategy = "textfile"
    instance_prompt: str | None = None
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    disable_multiline_split: bool = False

    @property
    def prompt(self) -> str:
        """The instance prompt; empty where there is none."""
        return (self.instance_prompt or "").strip()

    @cached_property
    def prompt_only(self) -> bool:
        """Whether the caption is the instance prompt and nothing else."""
        return self.caption_strategy == "instanceprompt" or self.only_instance_prompt

    @cached_property
    def reads_text(self) -> bool:
        """Whether captions come from text files."""
        return self.caption_strategy == "textfile" and not self.prompt_only


class CaptionError(DatasetError):
    """A clip has no usable caption.

    Args:
        reason: what is wrong, with the file's name.
        fix: what to do.
        cause: the reason in a few words, shared by all clips with the same trouble.
    """

    def __init__(self, reason: str, fix: str, cause: str) -> None:
        self.reason, self.fix, self.cause = reason, fix, cause
        super().__init__(f"{reason}. Fix: {fix}")


def read_captions(media: Path, rules: CaptionRules, text: str | None = None) -> tuple[str, ...]:
    """The captions of a media file, at least one.

    `textfile`: `<name without extension>.txt` beside it, UTF-8 with or without a byte order mark, any line
    ends; each line that is not blank is a caption of its own unless `disable_multiline_split`. `filename`:
    the name without its extension, `_` as spaces. `instanceprompt`: the `instance_prompt`.

    Args:
        text: what `read_text` gives for the text file, where it is known already.

    Raises:
        CaptionError: the text file is missing, unreadable, empty or no UTF-8 text, or the name holds no
        words.
    """
    if rules.reads_text:
        captions = _from_text(media, rules, text)
    elif rules.prompt_only:
        return (rules.prompt,)
    else:
        captions = _from_name(media)
    return tuple(f"{rules.prompt} {caption}" for caption in captions) if rules.prepend_instance_prompt else captions


def _from_name(media: Path) -> tuple[str, ...]:
    words = " ".join(media.stem.replace("_", " ").split())
    if not words:
        raise CaptionError(
            f"the name {media.name} holds no words to use as a caption",
            "name the file by what it shows, or set caption_strategy to textfile",
            MISSING,
        )
    return (words,)


def _from_text(media: Path, rules: CaptionRules, text: str | None) -> tuple[str, ...]:
    if text is None:
        text = read_text(media.with_suffix(".txt"))
    lines = [text] if rules.disable_multiline_split else text.split("\n")
    captions = tuple([stripped for line in lines if (stripped := line.strip())])
    if not captions:
        name = media.with_suffix(".txt").name
        raise CaptionError(f"the caption file {name} is empty", f"write what the clip shows into {name}", EMPTY)
    return captions


def read_text(file: Path) -> str:
    """The text of a caption file, its line ends as `\\n`.

    Raises:
        CaptionError: it is missing, cannot be read or is no UTF-8 text.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise CaptionError(
            f"the caption file {file.name} is missing",
            f"write {file.name} beside the clip, or set caption_strategy to filename or instanceprompt",
            MISSING,
        ) from None
    except OSError as error:
        raise CaptionError(
            f"the caption file {file.name} cannot be read: {(error.strerror or str(error)).lower()}",
            f"make {file.name} a text file that you may read",
            UNREADABLE,
        ) from None
    save = f"save {file.name} as plain UTF-8 text"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CaptionError(f"the caption file {file.name} is UTF-16, not UTF-8", save, NOT_UTF8)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(
            f"the caption file {file.name} is not UTF-8: byte {error.object[error.start]:#04x} "
            f"at position {error.start}",
            save,
            NOT_UTF8,
        ) from None
    if "\0" in text:
        raise CaptionError(f"the caption file {file.name} holds NUL bytes, so it is no text", save, NO_TEXT)
    return text.replace("\r\n", "\n").replace("\r", "\n")
