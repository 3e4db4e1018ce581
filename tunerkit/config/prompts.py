"""The validation prompts of a run, gathered from `validation_prompt`, the prompt library and `validation_input`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

ENTRIES = ("prompt", "image", "audio", "nickname")
"""What an entry of `validation_input` may hold."""
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")  # an underscore stands for each run of these


@dataclass(frozen=True)
class ValidationPrompt:
    """One prompt to render.

    Attributes:
        nickname: safe as part of a file name.
        image: file of the first frame (image to video).
        audio: file of the sound that the video is made to (sound to video).
    """

    nickname: str
    prompt: str
    image: Path | None = None
    audio: Path | None = None


def safe_name(name: str) -> str:
    """`name` reduced to letters, digits, dot, underscore and hyphen, so that it cannot leave its folder.

    >>> safe_name("../../chef <token>")
    'chef_token'
    """
    return _UNSAFE.sub("_", name).strip("._-")[:80] or "prompt"


def validation_prompts(config: TrainConfig) -> list[ValidationPrompt]:
    """All prompts to render, in order, with nicknames made unique by a number.

    Raises:
        ConfigError: if the library or `validation_input` cannot be read or names a missing image.
    """
    from tunerkit.config import load_prompt_library

    found: list[ValidationPrompt] = []
    if config.validation_prompt:
        found.append(ValidationPrompt("validation", config.validation_prompt))
    if config.user_prompt_library:
        library = load_prompt_library(config.user_prompt_library)
        found += [ValidationPrompt(safe_name(name), prompt) for name, prompt in library.items()]
    if config.validation_input:
        found += _image_prompts(Path(config.validation_input))
    return _unique(found)


def _image_prompts(path: Path) -> list[ValidationPrompt]:
    """Entries `{"prompt": ..., "image": ..., "audio": ..., "nickname": ...}`; paths are relative to the JSON file."""
    key = "validation_input"
    example = 'write a JSON list such as [{"image": "first_frame.png", "prompt": "a fox runs"}]'
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(key, str(path), f"cannot be read ({error})", example)]) from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("prompt"), str) for entry in entries
    ):
        raise ConfigError([Problem(key, str(path), 'is not a list of objects with a "prompt"', example)])
    prompts: list[ValidationPrompt] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries):
        place = f"{key}[{number}]"
        problems += [
            Problem(f"{place}.{name}", entry[name], "there is no such entry", f"use {', '.join(ENTRIES)}")
            for name in entry
            if name not in ENTRIES
        ]
        image = _input_file(path, entry, "image", place, _image_trouble, "name a PNG or JPEG file", problems)
        audio = _input_file(path, entry, "audio", place, _sound_trouble, "name a file with sound", problems)
        given = image or audio
        nickname = entry.get("nickname") or (given.stem if given else f"input-{number}")
        prompts.append(ValidationPrompt(safe_name(str(nickname)), entry["prompt"], image, audio))
    if problems:
        raise ConfigError(problems)
    return prompts


def _input_file(
    document: Path,
    entry: dict[str, Any],
    name: str,
    place: str,
    trouble_of: Callable[[Path], str | None],
    fix: str,
    problems: list[Problem],
) -> Path | None:
    """The file that an entry names, relative to the document; what is wrong with it is added to `problems`."""
    given = entry.get(name)
    if given is None or given == "":
        return None
    file = document.parent / given if isinstance(given, str) else None
    trouble = "is not a file name" if file is None else trouble_of(file)
    if trouble:
        problems.append(Problem(f"{place}.{name}", given, trouble, fix))
    return file


def _sound_trouble(path: Path) -> str | None:
    """Why a video cannot be made to the sound of `path`; None if it can. Reads the header only."""
    import av
    import av.error

    if not path.is_file():
        return f"{path} is missing"
    try:
        with av.open(str(path)) as container:
            return None if container.streams.audio else f"{path} holds no sound"
    except (OSError, ValueError, av.error.FFmpegError):
        return f"{path} cannot be read as sound"


def _image_trouble(path: Path) -> str | None:
    """Why `path` cannot be a first frame; None if it can. Reads the header only."""
    from PIL import Image

    if not path.exists():
        return f"{path} is missing"
    try:
        with Image.open(path):
            return None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"{path} has more pixels than Pillow opens ({Image.MAX_IMAGE_PIXELS})"
    except (OSError, SyntaxError, ValueError):
        return f"{path} is not a readable image"


def _unique(prompts: list[ValidationPrompt]) -> list[ValidationPrompt]:
    taken: set[str] = set()
    return [replace(entry, nickname=free_name(entry.nickname, taken)) for entry in prompts]


def free_name(name: str, taken: set[str]) -> str:
    """`name`, with a number where it is taken; file systems may not tell upper from lower case. It is taken then."""
    free, number = name, 1
    while free.lower() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.lower())
    return free
