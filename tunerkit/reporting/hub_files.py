"""What is uploaded of a run: its weights in every layout, the settings, sample videos, and the page."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import CheckpointError, TunerkitError
from tunerkit.files import process_runs, write_json
from tunerkit.reporting.model_card import Sample, model_card
from tunerkit.reporting.shared_settings import shared_settings
from tunerkit.running.json_files import JsonLines
from tunerkit.running.results import read_videos, summarised
from tunerkit.running.status import RunStatus, read_status

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

logger = logging.getLogger("tunerkit")
COMFYUI_FILE = "comfyui_lora_weights.safetensors"
SAMPLES_FOLDER, MOST_SAMPLES = "samples", 8
_EMA_FILE, _MODEL_FOLDERS = "ema_lora_weights.safetensors", ("transformer", "transformer_ema")
_STAGED = re.compile(r"\.hub-(\d+)-.+")


@contextlib.contextmanager
def staged(config: TrainConfig, repo_id: str, checkpoint: Path | None = None) -> Iterator[Path]:
    """A folder that holds what is uploaded; it is gone when the block ends. Large files are linked, not copied.

    Args:
        config: resolved settings of the run.
        repo_id: where it goes to.
        checkpoint: a checkpoint's folder whose weights go into a folder of the same name; None for the result itself.

    Raises:
        TunerkitError: if the run has no weights yet, or the disk is full.
    """
    folder = config.output_path
    _clear(folder)
    target = Path(tempfile.mkdtemp(prefix=f".hub-{os.getpid()}-", dir=folder))
    try:
        weights = result_of(folder) if checkpoint is None else checkpoint
        place = target if checkpoint is None else target / checkpoint.name
        place.mkdir(exist_ok=True)
        comfyui = _put_weights(config, weights, place)
        write_json(target / "config.json", shared_settings(config))
        samples = list(_put_samples(folder, target / SAMPLES_FOLDER))
        summary = _figures(folder, weights)
        card = model_card(config, repo_id, summary, samples, comfyui=comfyui if place == target else None)
        (target / "README.md").write_text(card, encoding="utf-8")
        yield target
    except OSError as error:
        raise TunerkitError(f"{folder} cannot be written ({error.strerror}). Fix: free disk space there") from error
    finally:
        shutil.rmtree(target, ignore_errors=True)


def result_of(folder: Path) -> Path:
    """Where the newest weights of a run lie: its own folder, or that of a checkpoint that was saved later.

    Raises:
        TunerkitError: if there are none.
    """
    from tunerkit.training.checkpoints import MANIFEST, find_checkpoint
    from tunerkit.training.export import LORA_FILE

    final = next((path for path in (folder / LORA_FILE, folder / "transformer") if path.exists()), None)
    newest, _ = find_checkpoint(folder, "latest")
    if final is None and newest is None:
        raise TunerkitError(f"{folder} holds no weights yet. Fix: train until a checkpoint is saved")
    if newest is None or (final is not None and _time(final) >= _time(newest / MANIFEST)):
        return folder
    return newest


def _time(path: Path) -> float:
    newest = max(path.iterdir(), key=lambda file: file.stat().st_mtime, default=path) if path.is_dir() else path
    return newest.stat().st_mtime


def _put_weights(config: TrainConfig, source: Path, place: Path) -> str | None:
    """Put the weights in `source` into `place`: the name of the file for ComfyUI, if there could be one."""
    from tunerkit.training.export import LORA_FILE

    if config.model_type != "lora":
        for name in _MODEL_FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, place / name, copy_function=_link)
        return None
    for name in (LORA_FILE, _EMA_FILE):
        if (source / name).is_file():
            _link(source / name, place / name)
    return _put_comfyui(source, place)


def _put_comfyui(source: Path, place: Path) -> str | None:
    from tunerkit.training.checkpoints import whole_checkpoint
    from tunerkit.training.export import STATE_FILE, export_checkpoint

    try:
        checkpoint = source if (source / STATE_FILE).is_file() else whole_checkpoint(source, "latest")
        export_checkpoint(checkpoint, place / COMFYUI_FILE, "comfyui")
    except (CheckpointError, TunerkitError) as error:  # a layout that this adapter has no place in, or no checkpoint
        logger.warning("the upload goes without a file for ComfyUI: %s", error)
        return None
    return COMFYUI_FILE


def _put_samples(folder: Path, place: Path) -> Iterator[Sample]:
    """Put the newest round of videos into `place`, those beside the base model after those alone."""
    videos = read_videos(folder, None)
    newest = [video for video in videos if video.step == max(v.step for v in videos)][:MOST_SAMPLES]
    files = [(video.path, video, False) for video in newest]
    files += [(video.comparison, video, True) for video in newest if video.comparison]
    for path, video, compared in files:
        place.mkdir(exist_ok=True)
        _link(path, place / path.name)
        yield Sample(f"{place.name}/{path.name}", video.prompt, video.seed, compared)


def _figures(folder: Path, weights: Path) -> dict[str, Any]:
    from tunerkit.training.run_folder import EVALUATION_FILE, METRICS_FILE

    status = read_status(folder) or RunStatus(state="stopped")
    if weights != folder:  # a checkpoint: its name tells its step
        status = replace(status, step=int(weights.name.rpartition("-")[2]))
    rows = [JsonLines(folder / name).rows() for name in (METRICS_FILE, EVALUATION_FILE)]
    metrics, evaluations = ([row for row in lines if row.get("step", 0) <= status.step] for lines in rows)
    return summarised(folder, status, metrics, evaluations)


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under another name, which outlives the first; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _clear(folder: Path) -> None:
    """Remove what killed processes have left."""
    for path in folder.glob(".hub-*"):
        match = _STAGED.fullmatch(path.name)
        if match and int(match[1]) != os.getpid() and not process_runs(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
