"""Reading the JSON documents of a configuration, with messages that say where a mistake is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunerkit.config.paths import Folders, not_found
from tunerkit.errors import ConfigError, Problem

CONFIG_NAME = "config.json"
"""Name of the settings document inside a folder."""


def read_json(path: Path, key: str) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        key: the setting (or "configuration") that named it, for messages.

    Raises:
        ConfigError: if the file cannot be read, is not UTF-8 text, is not JSON (with line, column and what to look
            for), or gives one name two values.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            [Problem(key, str(path), f"is not UTF-8 text (byte {error.start})", "save the file as UTF-8")]
        ) from None
    except OSError as error:
        raise ConfigError(
            [Problem(key, str(path), f"cannot be read ({error.strerror})", "correct the path or its permissions")]
        ) from None
    return parse_json(text, str(path), key)


def parse_json(text: str, source: str, key: str) -> Any:
    """The value that JSON `text` spells; `source` names it in messages.

    Raises:
        ConfigError: as `read_json`.
    """
    repeated: list[str] = []

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found and found[name] != value:
                repeated.append(name)
            found[name] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where = f"is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise ConfigError([Problem(key, source, where, _advice(text, error))]) from None
    except RecursionError:
        raise ConfigError([Problem(key, source, "is nested too deeply", "remove the needless brackets")]) from None
    if repeated:
        names = ", ".join(dict.fromkeys(repeated))
        message = f"gives {names} more than once, with different values"
        raise ConfigError([Problem(key, source, message, "keep one of them")])
    return value


def _advice(text: str, error: json.JSONDecodeError) -> str:
    """What to look for at the place where JSON could not be read on."""
    if not text.strip():
        return "the file is empty; write {} for no settings"
    before = text[: error.pos].rstrip()
    after = text[error.pos :].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]"):
        return "remove the comma before the closing bracket"
    if before.endswith(",") and after.startswith(","):
        return "remove the extra comma"
    if not after:
        return "the file ends too early: close every bracket and quote"
    if after.startswith(("//", "#", "/*")):
        return "remove the comment; JSON has none"
    if after.startswith(("'", "‘", "’", "“", "”")):
        return 'use straight double quotes: "'
    if re.match(r"(True|False|None)\b", after):
        return "write true, false or null in lower case, without quotes"
    if error.msg.startswith("Illegal trailing comma"):
        return "remove the comma before the closing bracket"
    if error.msg.startswith("Expecting ',' delimiter"):
        return "look for a missing comma at the end of the line before, or a missing quote or bracket"
    if error.msg.startswith("Extra data"):
        return "keep one value in the file: one pair of outer brackets around everything"
    if error.msg.startswith("Expecting property name"):
        return 'put the name in double quotes, or remove the comma before it: {"name": value}'
    if "control character" in error.msg or error.msg.startswith("Unterminated string"):
        return "close the quote on the same line"
    if "escape" in error.msg:
        return "write a backslash as \\\\, or use / in paths"
    return "look for a trailing or missing comma, a missing quote, or an unclosed bracket just before that place"


def find_config(path: str | os.PathLike[str]) -> Path:
    """The settings document that `path` means: the file itself, or `config.json` in a folder.

    Raises:
        ConfigError: if there is none.
    """
    given = Path(path).expanduser()
    folders = Folders.of()
    if given.is_dir():
        inside = given / CONFIG_NAME
        if inside.is_file():
            return inside
        raise ConfigError(
            [Problem("configuration", str(path), f"the folder holds no {CONFIG_NAME}", "name the settings file itself")]
        )
    if given.is_file():
        return given
    raise ConfigError([not_found("configuration", path, folders.tried(given))])


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of one JSON document, keys as written.

    Raises:
        ConfigError: as `read_json`, or if the document is not an object.
    """
    value = read_json(path, "configuration")
    if isinstance(value, dict):
        return value
    kind = "a list" if isinstance(value, list) else "a single value"
    fix = 'write an object: {"model_family": ..., ...}'
    if isinstance(value, list):
        fix += "; a dataset document is named by data_backend_config"
    raise ConfigError([Problem("configuration", str(path), f"holds {kind}, not an object of settings", fix)])


def read_datasets(path: Path) -> list[Any]:
    """The entries of a dataset document, keys as written.

    Raises:
        ConfigError: as `read_json`, or if the document is not a list.
    """
    return dataset_list(read_json(path, "data_backend_config"), str(path))


def dataset_list(value: Any, source: str) -> list[Any]:
    """`value` as the list of a dataset document.

    Raises:
        ConfigError: if it is not a list.
    """
    if isinstance(value, list):
        return value
    kind = "an object" if isinstance(value, dict) else "a single value"
    message = f"holds {kind}, not a list of datasets"
    raise ConfigError([Problem("data_backend_config", source, message, 'write a list: [{"id": ...}, ...]')])
