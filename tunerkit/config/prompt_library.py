"""Reading a prompt library: nickname -> prompt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunerkit.config.loading import read_json
from tunerkit.config.problems import entry_key, shown
from tunerkit.errors import ConfigError, Problem

_NICKNAMES = ("nickname", "shortname", "name", "id")
_PROMPTS = ("prompt", "text", "caption")
_EXAMPLE = 'write {"nickname": "the prompt"}'


def load_prompt_library(path: str | os.PathLike[str]) -> dict[str, str]:
    """The prompts of a library, in the order of the file.

    The file is an object `{nickname: prompt}` (or `{nickname: {"prompt": ...}}`), or a list of records with a nickname
    and a prompt.

    Raises:
        ConfigError: if the file cannot be read or any entry is not a prompt; all entries that are wrong are named.
    """
    file = Path(path)
    key = "user_prompt_library"
    value = read_json(file, key)
    if isinstance(value, dict):
        pairs = [(name, name, _text_of(prompt)) for name, prompt in value.items()]
    elif isinstance(value, list):
        pairs = [(entry_key(key, index), *_record(record)) for index, record in enumerate(value)]
    else:
        raise ConfigError([Problem(key, str(file), "is neither an object nor a list of prompts", _EXAMPLE)])
    if not pairs:
        raise ConfigError([Problem(key, str(file), "holds no prompt", f"{_EXAMPLE}, or leave the setting out")])
    return _checked(pairs, file, key)


def _checked(pairs: list[tuple[str, Any, Any]], file: Path, key: str) -> dict[str, str]:
    prompts: dict[str, str] = {}
    problems: list[Problem] = []
    for place, nickname, prompt in pairs:
        where = f"{key} ({file.name}, {place!r})"
        if not isinstance(nickname, str) or not nickname.strip():
            problems.append(Problem(where, shown(nickname), "has no nickname", _EXAMPLE))
        elif not isinstance(prompt, str):
            problems.append(Problem(where, shown(prompt), "is not text", _EXAMPLE))
        elif not prompt.strip():
            problems.append(Problem(where, prompt, "is an empty prompt", "write a prompt or remove the entry"))
        elif nickname in prompts:
            problems.append(Problem(where, nickname, "is a nickname used twice", "give each prompt its own"))
        else:
            prompts[nickname] = prompt
    if problems:
        raise ConfigError(problems)
    return prompts


def _text_of(value: Any) -> Any:
    """The prompt of a record, or the value itself."""
    if isinstance(value, dict):
        return next((value[name] for name in _PROMPTS if name in value), None)
    return value


def _record(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, dict):
        return None, value
    return next((value[name] for name in _NICKNAMES if name in value), None), _text_of(value)
