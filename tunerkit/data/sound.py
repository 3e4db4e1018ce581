"""Decides about the sound of every sample: that of the clip itself, or of a sound file that belongs to it.

A sample gets the sound of exactly the time its frames last, each window its own. The beginning of a sound file goes
with the beginning of its clip; of a file that lasts longer than the clip, `audio.truncation_mode` says which part. A
clip whose sound is missing is dropped, or trained as a silent one where `audio.allow_zero_audio` asks for it: nobody
could tell from the result that a clip was learned with the wrong sound.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tunerkit.config.dataset_document import AudioSettings
from tunerkit.data.audio import TruncationMode, kept_part, read_sound
from tunerkit.data.discover import FoundSound, Stamp, discover_sounds
from tunerkit.data.media import SoundTrack, UnreadableMedia
from tunerkit.data.media_memory import MediaMemory
from tunerkit.data.partners import (
    Matches,
    Missing,
    PartnerFolder,
    Words,
    clip_key,
    discover_partners,
    report_unused,
)
from tunerkit.data.samples import ClipRow, Sample, Sound

if TYPE_CHECKING:
    from tunerkit.config.dataset_document import DatasetConfig
    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.facts import SoundFormat

PROBE_WORKERS = 4
"""Files that are looked at side by side; the reading happens outside Python's lock."""

TOLERANCE = 0.1
"""Seconds of difference between sound and picture that need no word: encoders end sound on whole frames of 20-50 ms."""

ALLOW_SILENCE = "set audio.allow_zero_audio to true to train such clips as silent ones"
WORDS = Words("sound file", "{stem}.wav (or .flac, .mp3, .m4a, .ogg, .aac, .opus)", ALLOW_SILENCE)
NO_SOUND, NO_FILE = "no sound", "no sound file"
"""Causes that silence can stand in for."""
SILENT = "silence stands in for it (audio.allow_zero_audio), without a share in the loss"
STILL = "a still: trained without sound"

logger = logging.getLogger("tunerkit")
_told: set[str] = set()


def link_sounds(
    rows: Sequence[ClipRow],
    config: TrainConfig,
    wanted: SoundFormat,
    clips: Mapping[str, tuple[Path, MediaMemory]],
) -> list[ClipRow]:
    """The rows, with the sound of every sample of the datasets that ask for sound.

    Rows whose sound is missing or cannot be used are dropped with the reason; rows of other datasets, and stills, pass
    through without sound.

    Args:
        wanted: the waveform that the family takes.
        clips: folder and memory of each dataset of `rows`, by id.

    Raises:
        DatasetError: the folder of a dataset of sound cannot be used; all that are wrong at once.
    """
    asking = {dataset.id: dataset for dataset in config.datasets if dataset.has_clips and dataset.takes_sound}
    sources = {dataset.id: dataset for dataset in config.datasets if dataset.dataset_type == "audio"}
    present = [id_ for id_ in asking if id_ in clips]
    named = sorted({name for id_ in present for name in asking[id_].sound_ids})
    folders = discover_partners((sources[name] for name in named), config, discover_sounds, "sound files")
    memories = {id_: clips[id_][1] for id_ in present}
    for name, folder in folders.items():
        memories[name] = MediaMemory.of(sources[name], folder.folder, config)
        memories[name].retain({found.name for found in folder.files}, frozenset())

    chosen: dict[int, _File | Missing] = {}
    used: set[Path] = set()
    for id_ in present:
        _tell_format(asking[id_], wanted)
        mine = {number: row for number, row in enumerate(rows) if row.dataset == id_}
        if asking[id_].sound_ids:
            found, matched = _partners(mine, asking[id_], folders, config)
            used |= matched
        else:
            found = {number: _own_sound(row, clips[id_][0]) for number, row in mine.items() if row.samples}
        chosen.update(found)
    for name, folder in folders.items():
        # Sound of a dataset that is not looked at now is no news.
        if all(id_ in present for id_, dataset in asking.items() if name in dataset.sound_ids):
            report_unused(folder, used, "sound files")

    moving = {number for number in chosen if len(rows[number].samples[0].frame_indices) > 1}
    tracks = _read_all({file for n, file in chosen.items() if isinstance(file, _File) and n in moving}, memories)
    result = list(rows)
    for number, file in chosen.items():
        row = rows[number]
        if number not in moving:
            result[number] = row._replace(reason=f"{row.reason}; {STILL}")
        elif isinstance(file, Missing):
            result[number] = _without_sound(row, file, _Rules.of(asking[row.dataset], sources))
        else:
            rules = _Rules.of(asking[row.dataset], sources, file.dataset)
            result[number] = _with_sound(row, file, tracks[file], rules)
    return result


class _File(NamedTuple):
    """A file that should hold sound, of the dataset `dataset`; `name` and `stamp` as in `FoundSound`."""

    dataset: str
    file: Path
    name: str
    stamp: Stamp | None


class _Rules(NamedTuple):
    """What the settings say about sound.

    Attributes:
        allow_silence: clips without sound are trained as silent ones.
        longest: seconds that sound may last.
        truncation: which part is kept of a file that lasts longer than its clip.
    """

    allow_silence: bool
    longest: float | None
    truncation: TruncationMode

    @classmethod
    def of(cls, clips: DatasetConfig, sources: Mapping[str, DatasetConfig], source: str = "") -> _Rules:
        """Of a dataset of clips, and of the dataset `source` that the sound lies in, whose own settings come first."""
        given = [sources[name].audio for name in clips.sound_ids] + [clips.audio]
        own = sources[source].audio if source in sources else None
        audio = own or clips.audio or AudioSettings()
        allow = any(settings.allow_zero_audio for settings in given if settings)
        return cls(allow, audio.max_duration_seconds, audio.truncation_mode)


# Which file --------------------------------------------------------------------------------------------------------


def _own_sound(row: ClipRow, folder: Path) -> _File | Missing:
    """The clip itself, if it has sound."""
    source = row.samples[0].source
    if not source.has_audio:
        fix = f"{ALLOW_SILENCE}, use clips with sound, or remove audio to train without sound"
        return Missing("the clip has no sound", fix, NO_SOUND)
    return _File(row.dataset, row.file, row.file.relative_to(folder).as_posix(), (source.size_bytes, source.mtime_ns))


def _partners(
    rows: Mapping[int, ClipRow],
    dataset: DatasetConfig,
    folders: Mapping[str, PartnerFolder[FoundSound]],
    config: TrainConfig,
) -> tuple[dict[int, _File | Missing], frozenset[Path]]:
    """The sound file of each used row of one dataset, and every file that belongs to any of its clips."""
    mine = [folders[name] for name in dataset.sound_ids]
    origin = {found.file: folder.dataset for folder in mine for found in folder.files}
    matches = Matches.of({n: clip_key(row.file, dataset, config) for n, row in rows.items()}, mine, WORDS)
    chosen: dict[int, _File | Missing] = {}
    for number, row in rows.items():
        if row.samples:
            found = matches.choose(number, row)
            chosen[number] = found if isinstance(found, Missing) else _File(origin[found.file], *found)
    return chosen, matches.used


def _tell_format(dataset: DatasetConfig, wanted: SoundFormat) -> None:
    """Say once where another waveform is asked for than the model takes."""
    audio = dataset.audio
    if audio is None or (audio.sample_rate, audio.channels or wanted.channels) == (wanted.sample_rate, wanted.channels):
        return
    remark = (
        f"dataset '{dataset.id}': audio.sample_rate = {audio.sample_rate} and audio.channels = {audio.channels} are "
        f"not what the model takes; its sound becomes {wanted.sample_rate} Hz with {wanted.channels} channels"
    )
    if remark not in _told:
        _told.add(remark)
        logger.info(remark)


# What it holds -----------------------------------------------------------------------------------------------------


def _read_all(files: Set[_File], memories: Mapping[str, MediaMemory]) -> dict[_File, SoundTrack | UnreadableMedia]:
    """What files hold, from the memories of their datasets or else by looking; what is found is remembered."""
    tracks: dict[_File, SoundTrack | UnreadableMedia] = {}
    unknown: list[_File] = []
    for file in sorted(files):
        known = memories[file.dataset].sound(file.name, file.stamp, file.file)
        if known is None:
            unknown.append(file)
        else:
            tracks[file] = known
    try:
        with ThreadPoolExecutor(PROBE_WORKERS) as pool:
            for file, (track, lasting) in zip(unknown, pool.map(_read, unknown), strict=True):
                tracks[file] = track
                if lasting:
                    memories[file.dataset].remember_sound(file.name, file.stamp, track)
    finally:
        for memory in memories.values():
            memory.save()
    return tracks


def _read(file: _File) -> tuple[SoundTrack | UnreadableMedia, bool]:
    """What a file holds or why it cannot be used, and whether that lasts as long as the file does not change."""
    try:
        return read_sound(file.file), True
    except UnreadableMedia as error:
        return error, True
    except Exception as error:
        # A reader can fail on a damaged file in ways nobody listed; one file must not stop the other thousand.
        reason = f"reading its sound failed unexpectedly: {type(error).__name__}: {error}"
        return UnreadableMedia(file.file, reason, "check that it plays, export it again, or remove it"), False


# The decision ------------------------------------------------------------------------------------------------------


def _without_sound(row: ClipRow, why: Missing, rules: _Rules) -> ClipRow:
    if not rules.allow_silence or why.cause not in (NO_SOUND, NO_FILE):
        return why.drop(row)
    samples = tuple(sample._replace(sound=_silence(sample)) for sample in row.samples)
    return row._replace(reason=f"{row.reason}; {why.reason}: {SILENT}", samples=samples)


def _with_sound(row: ClipRow, file: _File, track: SoundTrack | UnreadableMedia, rules: _Rules) -> ClipRow:
    """A used row with the sound of each of its windows, or dropped because of it."""
    own = file.file == row.file
    name = "its sound" if own else f"sound {file.file.name}"
    if isinstance(track, UnreadableMedia):
        reason = track.reason if own else f"{name}: {track.reason}"
        return Missing(reason, f"{track.fix} ({file.file})", track.cause).drop(row)
    if rules.longest is not None and track.seconds > rules.longest:
        reason = f"{name} lasts {track.seconds:.1f} s, longer than audio.max_duration_seconds = {rules.longest:g}"
        return Missing(reason, "raise audio.max_duration_seconds, or cut the sound", "sound too long").drop(row)

    shift, remarks = (0.0, []) if own else _placed(row, name, track, rules)
    spans = [_Span.of(sample, file.file, track, shift) for sample in row.samples]
    kept = [
        sample._replace(sound=span.sound if span.covered else _silence(sample))
        for sample, span in zip(row.samples, spans, strict=True)
        if span.covered or rules.allow_silence
    ]
    silent = sum(not span.covered for span in spans)
    if not kept:
        first, last = row.samples[0], row.samples[-1]
        reason = (
            f"{name} lasts from {track.begins - shift:.2f} to {track.ends - shift:.2f} s of the clip, and the picture "
            f"is used from {_start(first):.2f} to {_start(last) + last.seconds:.2f} s"
        )
        return Missing(reason, f"{ALLOW_SILENCE}, or use sound as long as the picture", NO_SOUND).drop(row)
    remarks += _gaps([span for span in spans if span.covered])
    if silent == len(spans):
        remarks.append(SILENT)
    elif silent:
        instead = SILENT if rules.allow_silence else f"left out for want of sound; to keep them {ALLOW_SILENCE}"
        remarks.append(f"{silent} of {len(spans)} windows: {instead}")
    if row.samples[0].alternatives > 1:
        kept = [sample._replace(alternatives=len(kept)) for sample in kept]
    return row._replace(reason="; ".join([row.reason, *remarks]), samples=tuple(kept))


class _Span(NamedTuple):
    """The sound of one sample.

    Attributes:
        late: seconds by which the sound starts after the picture.
        short: seconds by which it ends before the picture.
        covered: whether there is any sound in the span.
    """

    sound: Sound
    late: float
    short: float
    covered: bool

    @classmethod
    def of(cls, sample: Sample, file: Path, track: SoundTrack, shift: float) -> _Span:
        """With sound that has `shift` seconds more on its clock than the picture."""
        start, seconds = round(_start(sample) + shift, 6), sample.seconds
        late, short = max(0.0, track.begins - start), max(0.0, start + seconds - track.ends)
        return cls(Sound(file, track.digest, start, seconds), late, short, late + short < seconds)


def _placed(row: ClipRow, name: str, track: SoundTrack, rules: _Rules) -> tuple[float, list[str]]:
    """Seconds that a sound file's clock is ahead of the clip's, and what to say about it."""
    spare = track.seconds - row.samples[0].source.duration
    begin = kept_part(spare, rules.truncation, track.digest) if spare > TOLERANCE else 0.0
    remark = f"{name}, from {begin:.2f} s on (audio.truncation_mode = {rules.truncation})" if begin else name
    return round(track.begins + begin, 6), [remark]


def _gaps(spans: Sequence[_Span]) -> list[str]:
    """What to say about sound that does not last as long as the picture."""
    late, short = (max((getattr(span, key) for span in spans), default=0.0) for key in ("late", "short"))
    told = [f"sound starts {late:.1f} s after the picture"] if late > TOLERANCE else []
    told += [f"sound ends {short:.1f} s before the picture"] if short > TOLERANCE else []
    return [f"{' and '.join(told)}: silence fills up"] if told else []


def _start(sample: Sample) -> float:
    """When a sample's picture begins, in seconds on the clip's clock."""
    # Frames without times are shown at a constant rate.
    return sample.frame_times[0] if sample.frame_times else sample.frame_indices[0] / (sample.source.fps or 1.0)


def _silence(sample: Sample) -> Sound:
    return Sound(sample.file, "", 0.0, sample.seconds, silent=True)
