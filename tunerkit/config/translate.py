"""What settings mean in SimpleTuner's documents, said in our settings.

Each change of meaning is a note. Values that already have our meaning pass through unchanged, so that reading a saved
configuration changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from tunerkit.config.dataset_document import CLIP_TYPES
from tunerkit.config.fields import Kind, converted
from tunerkit.config.names import INHERITED, OPTIMIZER_ALIASES, VALUE_ALIASES
from tunerkit.config.precisions import BASE, TEXT, translate_precision
from tunerkit.config.problems import entry_key
from tunerkit.errors import Note

Values = MutableMapping[str, Any]

WAVES = ("cosine", "sine")
"""Schedules whose warmup SimpleTuner reads as a half period."""
_MEGAPIXELS_BELOW = 16
"""A bare number below this is megapixels, from it on the edge of a square in pixels."""


def translate(values: Values, *, foreign_schedule: bool = True) -> list[Note]:
    """Translate the settings in place.

    Args:
        values: settings under our names.
        foreign_schedule: whether a warmup as long as the run has SimpleTuner's meaning.
    """
    notes: list[Note] = []
    _spellings(values, VALUE_ALIASES)
    for key, change in _CHANGES.items():
        if key in values:
            notes += change(values)
    if foreign_schedule:
        notes += _schedule(values)
    return notes


def translate_datasets(values: Values, datasets: list[Any]) -> list[Note]:
    """Translate the dataset entries in place, with the settings they take from the top level."""
    notes: list[Note] = []
    media = [
        (entry_key("datasets", index), entry)
        for index, entry in enumerate(datasets)
        if isinstance(entry, MutableMapping) and entry.get("dataset_type", "video") in CLIP_TYPES
    ]
    for key in INHERITED:
        if key in values:
            notes.append(_inherit(key, values.pop(key), [entry for _, entry in media]))
    for place, entry in media:
        _spellings(entry, VALUE_ALIASES)
        notes += _caption_strategy(place, entry)
        notes += _frame_rate(place, entry, values.get("framerate"))
    return notes


def _inherit(key: str, value: Any, entries: list[Values]) -> Note:
    for entry in entries:
        entry.setdefault(key, value)
    return Note(key, "a setting of datasets: applied to every dataset of clips that does not set it")


def _caption_strategy(place: str, entry: Values) -> Iterator[Note]:
    if entry.get("caption_strategy") is None and not _flag(entry.get("disabled")):
        entry["caption_strategy"] = "textfile"
        yield Note(
            f"{place}.caption_strategy",
            "not set: captions are read from <clip>.txt (SimpleTuner would take them from file names; for that, set "
            "filename)",
        )


def _frame_rate(place: str, entry: Values, framerate: Any) -> Iterator[Note]:
    """A run has one framerate: the top level's, else that of its datasets."""
    video = entry.get("video")
    run = _number(framerate)
    own = _number(video.get("frame_rate")) if isinstance(video, MutableMapping) else None
    if isinstance(video, MutableMapping) and run is not None and own is not None and own != run and 0 < own <= 240:
        video["frame_rate"] = framerate
        yield Note(
            f"{place}.video.frame_rate",
            f"clips are resampled to framerate = {run:g}, which is set for the whole run, not to {own:g}",
        )


def _schedule(values: Values) -> Iterator[Note]:
    """`cosine` and `sine`: SimpleTuner takes lr_warmup_steps as the half period of a wave and does not warm up."""
    name = str(values.get("lr_scheduler", "")).strip().casefold()
    warmup, steps = _whole(values.get("lr_warmup_steps")), _whole(values.get("max_train_steps"))
    if name not in WAVES or not warmup or values.get("lr_decay_steps") is not None:
        return
    if steps and warmup >= steps:
        values["lr_warmup_steps"], values["lr_decay_steps"] = 0, warmup
        yield Note(
            "lr_warmup_steps",
            f"{name} with a warmup of {warmup} steps, as long as the run: read as SimpleTuner does, as the length of "
            f"the {name} curve without any warmup: lr_warmup_steps = 0, lr_decay_steps = {warmup}",
        )
    else:
        yield Note(
            "lr_warmup_steps",
            f"{warmup} steps of real warmup, then {name} down to lr_end at lr_decay_steps or the last step "
            "(SimpleTuner would read the number as the half period of a wave that has no warmup)",
        )


def _precision(key: str) -> Callable[[Values], Iterator[Note]]:
    return lambda values: translate_precision(values, key)


def _optimizer(values: Values) -> Iterator[Note]:
    given = values["optimizer"]
    name = OPTIMIZER_ALIASES.get(given.strip().casefold()) if isinstance(given, str) else None
    if name is not None:
        values["optimizer"] = name
        yield Note("optimizer", f"{given} is called {name} here")


def _seed(values: Values) -> Iterator[Note]:
    if _whole(values["seed"]) == -1:
        del values["seed"]
        yield Note("seed", "-1 asks for a random seed; the default is used, so that the run can be repeated")


def _resume(values: Values) -> Iterator[Note]:
    given = values["resume_from_checkpoint"]
    if given is False or (isinstance(given, str) and given.strip().casefold() in ("", "none", "null", "false", "no")):
        values["resume_from_checkpoint"] = None
    if given is True:
        values["resume_from_checkpoint"] = "latest"
    yield from ()


def _lengths(key: str) -> Callable[[Values], Iterator[Note]]:
    def change(values: Values) -> Iterator[Note]:
        if _whole(values[key]) == -1:
            values[key] = 0
        yield from ()

    return change


def _validation_resolution(values: Values) -> Iterator[Note]:
    given = values["validation_resolution"]
    parts = given if isinstance(given, (list, tuple)) else str(given).split(",") if given is not None else []
    sizes = [_size(part) for part in parts]
    if any(size is None for size in sizes) or not sizes:
        return  # the rules say what is wrong with it
    values["validation_resolution"] = ",".join(size for size in sizes if size)
    bare = _number(given)
    if bare is not None and bare < _MEGAPIXELS_BELOW:
        yield Note("validation_resolution", f"{bare:g} megapixels: read as {values['validation_resolution']}")


def _size(part: Any) -> str | None:
    """`"832 x 480"`, `[832, 480]`, `480` (a square) or `0.5` (megapixels) as WIDTHxHEIGHT; None for anything else."""
    if isinstance(part, (list, tuple)) and len(part) == 2:
        return f"{part[0]}x{part[1]}"
    text = str(part).strip()
    pair = re.fullmatch(r"(\d+)\s*[xX×*]\s*(\d+)", text)
    if pair:
        return f"{int(pair[1])}x{int(pair[2])}"
    number = _number(text)
    if number is None or number <= 0:
        return None
    if number >= _MEGAPIXELS_BELOW:
        return f"{int(number)}x{int(number)}" if float(number).is_integer() else None
    edge = max(64, round(math.sqrt(number * 1e6) / 64) * 64)
    return f"{edge}x{edge}"


def _quarantine(values: Values) -> Iterator[Note]:
    if _flag(values["delete_problematic_images"]) and not _flag(values.get("delete_quarantined_files")):
        yield Note(
            "delete_problematic_images",
            "a file that cannot be encoded comes on a quarantine list and is left out from then on; the file itself is "
            "deleted only with delete_quarantined_files",
        )


def _unwanted(values: Values) -> Iterator[Note]:
    if _flag(values["delete_unwanted_images"]):
        yield Note("delete_unwanted_images", "a file that is not used is listed with its reason; it is never deleted")


def _write_batches(values: Values) -> Iterator[Note]:
    if _whole(values["write_batch_size"]) not in (None, 128):
        yield Note("write_batch_size", "accepted; it has no effect here: each cache file is written when it is ready")


_CHANGES: dict[str, Callable[[Values], Iterator[Note]]] = {
    **{key: _precision(key) for key in (BASE, *TEXT)},
    "delete_problematic_images": _quarantine,
    "delete_unwanted_images": _unwanted,
    "max_train_steps": _lengths("max_train_steps"),
    "num_train_epochs": _lengths("num_train_epochs"),
    "optimizer": _optimizer,
    "resume_from_checkpoint": _resume,
    "seed": _seed,
    "validation_resolution": _validation_resolution,
    "write_batch_size": _write_batches,
}


def _spellings(values: Values, table: dict[str, dict[str, str]]) -> None:
    """Replace other spellings of choices by ours."""
    for key, spellings in table.items():
        given = values.get(key)
        if isinstance(given, str):
            values[key] = spellings.get(given.strip().casefold(), given)


def _flag(value: Any) -> bool:
    return isinstance(value, (bool, str)) and converted(value, Kind(flag=True)) is True


def _whole(value: Any) -> int | None:
    """The whole number that a raw value spells, if it spells one."""
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
