"""Every text that the widgets show, by key, in the language of the reader.

A language is a folder of JSON files beside this one, `<code>/<widget>.json`: key -> text, with `{names}` for values.
English is complete; what another language lacks is shown in English. What is drawn into pictures (`plot.*`, the axes of
`sounds.*`) stays English in Hindi and Japanese: matplotlib's own font has none of their letters. The descriptions of
the settings have translations only (`settings.json`): English stands in the settings themselves.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunerkit import SettingInfo

VARIABLE = "TUNERKIT_LANG"
"""Environment variable that chooses the language, for example `hi`, or `es_MX.UTF-8`."""
ENGLISH = "en"
_NAMES = {"en": "English", "es": "Español", "hi": "हिन्दी", "ja": "日本語"}
_HERE = Path(__file__).parent
_chosen: str | None = None


def languages() -> list[str]:
    """The codes of the languages that there are texts in, English first."""
    found = {folder.name for folder in _HERE.iterdir() if folder.is_dir() and any(folder.glob("*.json"))}
    return [ENGLISH, *sorted(found - {ENGLISH})]


def language() -> str:
    """The code of the language that texts come in: the chosen one, else that of `TUNERKIT_LANG`, else English."""
    return _chosen if _chosen is not None else _wanted()


def _wanted() -> str:
    wanted = os.environ.get(VARIABLE, "").replace("-", "_").partition("_")[0].partition(".")[0].lower()
    return wanted if wanted in languages() else ENGLISH


def choose_language(code: str | None) -> None:
    """Show all texts from now on in the language `code`; None = as `TUNERKIT_LANG` says.

    Raises:
        TunerkitError: there are no texts in it.
    """
    global _chosen
    if code is not None and code not in languages():
        from tunerkit import TunerkitError

        raise TunerkitError(f"language = {code!r} is not known. Fix: use one of {', '.join(languages())}")
    _chosen = code


def text(key: str, /, **values: object) -> str:
    """The text of a key, with its values filled in.

    Raises:
        KeyError: if there is no such key, or a value is missing.
    """
    return texts_of(language())[key].format(**values)


def setting_text(info: SettingInfo) -> str:
    """What a setting means, in one line; English stands in the settings themselves."""
    return texts_of(language()).get(f"setting.{info.name}", info.description)


def language_names() -> dict[str, str]:
    """Code of a language -> its own name; the one that `TUNERKIT_LANG` asks for first."""
    codes = sorted(languages(), key=lambda code: code != _wanted())
    return {code: _NAMES.get(code, code) for code in codes}


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
