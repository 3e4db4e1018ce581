"""The widgets' texts in every language: complete, true to the English ones, and short where there is little room."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from pathlib import Path

import pytest

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit_widgets.form_layout import FOLDED, MAIN
from tunerkit_widgets.texts import choose_language, duration, language, languages, texts_of

WIDGETS = Path(tw.__file__).parent
LANGUAGES = ("es", "hi", "ja")
SETTINGS = "settings.json"
"""Descriptions of settings; the English ones stand in the settings themselves."""

DRAWN = frozenset(key for key in texts_of("en") if key.startswith("plot.") or key in ("sounds.seconds", "sounds.bands"))
"""Words inside of pictures. They are drawn with matplotlib's own font, whatever is installed."""
NOT_DRAWABLE = ("hi", "ja")
"""That font has none of their letters, so what is drawn stays English."""

LETTERS = {"es": r"[a-záéíóúñü]", "hi": r"[\u0900-\u097f]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]"}
FULL_STOP = {"es": ".", "hi": "।", "ja": "。"}
TERMS = {
    "es": "bucket buckets caption captions checkpoint checkpoints clips dataset ema fps frames min no ram",
    "hi": "accumulated checkpoint ema evaluation fps gib image lora loss of peak ram rank sample samples seed to video",
    "ja": "checkpoint gib image of ram to video",
}
"""Words that practitioners leave in English: a text may consist of these alone. For "of" a slash will do."""

BUTTONS = (
    *(f"dashboard.{name}" for name in ("pause", "resume", "stop", "confirm", "keep", "save", "validate")),
    *(f"checkpoints.{name}" for name in ("refresh", "resume", "export", "compare", "delete", "confirm", "keep")),
    *(f"runs.{name}" for name in ("refresh", "attach", "stop", "confirm", "keep")),
    *(f"sweep.{name}" for name in ("start", "stop", "refresh")),
    *(f"dataset.{name}" for name in ("take_disk", "overwrite", "undo", "replace", "add_prefix", "close")),
    *(f"gallery.{name}" for name in ("play", "pause", "compare", "close", "mute", "unmute", "download")),
    *(f"form.{name}" for name in ("save", "load", "count")),
)
SLACK = 4
"""Letters that a button's label may have beyond twice those of the English one."""
LABEL_LETTERS = 19
"""Letters for which the form has room in front of a field."""


def files(code: str) -> dict[str, dict[str, str]]:
    """Name of each file of a language -> its texts, without the English ones that stand in for missing ones."""
    folder = WIDGETS / "texts" / code
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def own(code: str) -> dict[str, str]:
    return {key: words for texts in files(code).values() for key, words in texts.items()}


def english() -> dict[str, str]:
    """Everything that is to be translated, the descriptions of the settings included."""
    described = {f"setting.{info.name}": info.description for info in tk.describe() if info.active}
    return {**own("en"), **described}


def places(words: str) -> set[str]:
    """Names of the values that are filled into a text."""
    return {name for _, name, _, _ in string.Formatter().parse(words) if name}


def names_in(words: str) -> set[str]:
    """Settings, files, attributes and quoted values: what somebody types, and what is the same in every language."""
    return set(
        re.findall(r"\.?\w+(?:[._]\w+)+|(?<= )\.\w+|'[\w=./-]+'|[A-Z]\w+\(\w*\)|Ctrl\+\w+", words, flags=re.ASCII)
    )


def width(words: str) -> int:
    """Letters that a text is wide: Japanese ones count twice, and marks above and below letters not at all."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in words)
    marks = sum(unicodedata.category(letter) in ("Mn", "Cf") for letter in words)
    return len(words) + wide - marks


def left_in_english(code: str, words: str, original: str) -> bool:
    """Whether a text has words beside values, names and terms, and none of them is translated."""
    for name in names_in(original):
        original = original.replace(name, "")
    found = set(re.findall(r"[a-z]{2,}", re.sub(r"\{\w+\}", "", original).lower()))
    return bool(found - set(TERMS[code].split())) and (words == original or not re.search(LETTERS[code], words))


def ending(words: str, full_stop: str) -> str:
    if words.endswith(("...", "…")):
        return "..."
    return "." if words.endswith(full_stop) else ""


def test_every_text_exists_and_is_used() -> None:
    sources = [path.read_text(encoding="utf-8") for path in WIDGETS.rglob("*.py")]
    literal = set(re.findall(r"""["']([a-z]+\.[a-z_]+)["']""", "\n".join(sources)))
    keys = set(own("en"))
    computed = {key for key in keys if key.startswith(("label.", "group.", "cache.", "change."))}
    assert keys - literal == computed - literal
    assert not {key for key in literal if key.split(".")[0] in {k.split(".")[0] for k in keys}} - keys
    assert {f"label.{name}" for name in MAIN} | {f"group.{name}" for name in FOLDED} <= keys


def test_there_are_no_other_languages() -> None:
    """Otherwise the checks below pass one by."""
    assert languages() == ["en", *LANGUAGES]


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_text_is_translated(code: str) -> None:
    """Each in the file that has it in English, without keys that nobody asks for."""
    spared = DRAWN if code in NOT_DRAWABLE else frozenset()
    wanted = {name: set(texts) - spared for name, texts in files("en").items()}
    wanted[SETTINGS] = {f"setting.{info.name}" for info in tk.describe() if info.active}
    assert {name: set(texts) for name, texts in files(code).items()} == {n: keys for n, keys in wanted.items() if keys}


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_text_is_left_in_english(code: str) -> None:
    originals = english()
    found = own(code)
    assert [key for key, words in found.items() if not words.strip()] == []
    assert [key for key, words in found.items() if left_in_english(code, words, originals[key])] == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_translation_says_the_same(code: str) -> None:
    """The same values, names and markup, and a full stop or dots at the end where English has them."""
    wrong: dict[str, str] = {}
    originals = english()
    for key, words in own(code).items():
        original = originals[key]
        if not key.startswith("setting.") and places(words) != places(original):
            wrong[key] = "values"
        if any(name not in words for name in names_in(original)):
            wrong[key] = f"names {names_in(original)}"
        if not set(re.findall(r"<[^>]*>|&\w+;", words)) <= set(re.findall(r"<[^>]*>|&\w+;", original)):
            wrong[key] = "markup"
        if ending(words, FULL_STOP[code]) != ending(original, "."):
            wrong[key] = "ending"
    assert wrong == {}


@pytest.mark.parametrize("code", LANGUAGES)
def test_labels_stay_short(code: str) -> None:
    texts = texts_of(code)
    fields = [key for key in texts if key.startswith("label.") or key in ("preset.label", "form.file")]
    assert {key: texts[key] for key in fields if width(texts[key]) > LABEL_LETTERS} == {}
    long = {key: texts[key] for key in BUTTONS if width(texts[key]) > 2 * len(texts_of("en")[key]) + SLACK}
    assert long == {}


def test_what_is_drawn_can_be_drawn() -> None:
    """Matplotlib draws an empty box for a letter that its font lacks."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    font = FT2Font(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    for code in languages():
        drawn = {letter for key in DRAWN for letter in texts_of(code)[key] if letter.isprintable()}
        assert {letter for letter in drawn if not font.get_char_index(ord(letter))} == set()
    for code in NOT_DRAWABLE:
        letters = re.findall(LETTERS[code], "".join(own(code).values()))
        assert letters
        assert not any(font.get_char_index(ord(letter)) for letter in letters)


def test_the_language_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERKIT_LANG", "en_GB.UTF-8")
    assert language() == "en"
    monkeypatch.setenv("TUNERKIT_LANG", "es-MX")
    assert language() == "es"
    monkeypatch.setenv("TUNERKIT_LANG", "xx")
    assert language() == "en"
    with pytest.raises(tk.TunerkitError, match="language = 'xx' is not known"):
        choose_language("xx")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7322, "2 h 2 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
