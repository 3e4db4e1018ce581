"""Every text that the widgets show, by key, in the language of the reader.

A language is a folder of JSON files beside this one, `<code>/<widget>.json`: key -> text, with `{names}` for values.
English is complete; what another language lacks is shown in English.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

VARIABLE = "TUNERKIT_LANG"
"""Environment variable that chooses the language, for example `hi`, or `es_MX.UTF-8`."""
ENGLISH = "en"
_HERE = Path(__file__).parent
_chosen: str | None = None


def languages() -> list[str]:
    """The codes of the languages that there are texts in, English first."""
    found = {folder.name for folder in _HERE.iterdir() if folder.is_dir() and any(folder.glob("*.json"))}
    return [ENGLISH, *sorted(found - {ENGLISH})]


def language() -> str:
    """The code of the language that texts come in: the chosen one, else that of `TUNERKIT_LANG`, else English."""
    if _chosen is not None:
        return _chosen
    wanted = os.environ.get(VARIABLE, "").replace("-", "_").partition("_")[0].partition(".")[0].lower()
    return wanted if wanted in languages() else ENGLISH


def choose_language(code: str | None) -> None:
    """Show all texts from now on in the language `code`; None = as `TUNERKIT_LANG` says.

    Raises:
        ValueError: there are no texts in it.
    """
    global _chosen
    if code is not None and code not in languages():
        raise ValueError(f"there are no texts in {code!r}; use one of {', '.join(languages())}")
    _chosen = code


def text(key: str, /, **values: object) -> str:
    """The text of a key, with its values filled in.

    Raises:
        KeyError: if there is no such key, or a value is missing.
    """
    return texts_of(language())[key].format(**values)


@cache
def texts_of(code: str) -> dict[str, str]:
    """All texts of a language by key, with the English ones where it has none."""
    texts = {} if code == ENGLISH else dict(texts_of(ENGLISH))
    for path in sorted((_HERE / code).glob("*.json")):
        texts.update(json.loads(path.read_text(encoding="utf-8")))
    return texts


def duration(seconds: float) -> str:
    """A time in words, with two units at most."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return text("duration.hours", hours=hours, minutes=minutes_left)
    if minutes:
        return text("duration.minutes", minutes=minutes, seconds=rest)
    return text("duration.seconds", seconds=whole)
