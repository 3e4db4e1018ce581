"""Steps, evaluations and videos of a run in wandb, tensorboard and trackio, through accelerate's tracker classes.

A tracker is opened with the first thing that there is to report: only then is it known from which step on the run goes
on, and a run that fails before leaves no empty page.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunerkit.config.reporting_rules import trackers_of
from tunerkit.errors import Problem
from tunerkit.files import write_json
from tunerkit.reporting.listening import Listener
from tunerkit.reporting.moving_pictures import gif
from tunerkit.reporting.shared_settings import flat_settings
from tunerkit.running.json_files import read_object
from tunerkit.running.results import read_videos

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.validation.render import Rendering

logger = logging.getLogger("tunerkit")
PROJECT = "tunerkit"
MEMORY_FILE = "trackers.json"
"""In the run's folder: what each tracker calls this run, so that it goes on there."""
TENSORBOARD_FOLDER = "tensorboard"
_LEFT_OUT = ("step", "time", "sigmas")
"""Of a line: the axis, and losses by noise level, each of which would be a chart of its own, up to a thousand of them;
evaluation.jsonl has them."""
_OUTPUT_NAMES = ("output", "outputs")
"""Names of output folders that say nothing; the folder above is called by something else."""


def project_name(config: TrainConfig) -> str:
    """The project that runs are shown in."""
    return config.tracker_project_name or PROJECT


def run_name(config: TrainConfig) -> str:
    """What the run is called: `tracker_run_name`, else its output folder."""
    folder = config.output_path
    return config.tracker_run_name or (folder.parent.name if folder.name in _OUTPUT_NAMES else folder.name) or "run"


def scalars(row: Mapping[str, Any], group: str) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl or evaluation.jsonl, with names such as "train/parts/video".

    What is no number (names of samples, a norm that overflowed) is left out.
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        if key in _LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            found |= scalars(value, f"{group}/{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{group}/{key}"] = value
    return found


class _Tracker(ABC):
    """One service, opened.

    Args:
        config: resolved settings.
        step: the first step that will be reported.
        known: what the service calls the run that goes on; None where a new one begins.
    """

    @abstractmethod
    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None: ...

    tracker: Any
    """Accelerate's tracker."""
    known: str
    """What the service calls this run."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """Report values of one step."""
        self.tracker.log(values, step=step)

    @abstractmethod
    def video(self, name: str, video: Rendering) -> None:
        """Report a rendered video."""


class _Wandb(_Tracker):
    """Steps are an axis of their own: wandb's counter only rises, and a run may go on from an earlier checkpoint."""

    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        from accelerate.tracking import WandBTracker

        del step
        self.known = known or uuid.uuid4().hex[:12]
        names = {"name": run_name(config), "id": self.known, "resume": "allow", "dir": str(config.output_path)}
        self.tracker = WandBTracker(project_name(config), **names)
        self.tracker.start()
        self.tracker.store_init_configuration(flat_settings(config))
        run = self.tracker.tracker
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int) -> None:
        self.tracker.log({**values, "step": step})

    def video(self, name: str, video: Rendering) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.log({name: wandb.Video(str(video.path), caption=video.prompt, format="mp4")}, video.step)


class _TensorBoard(_Tracker):
    """Its files lie in the run's folder. Videos are animated images, the only kind of video that it has."""

    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        from accelerate.tracking import TensorBoardTracker

        self.known = known or run_name(config)
        folder = str(config.output_path / TENSORBOARD_FOLDER)
        # What lies there after this step is of a course given up.
        self.tracker = TensorBoardTracker(self.known, folder, purge_step=step)
        self.tracker.start()
        table = "".join(f"| {key} | {value} |\n" for key, value in flat_settings(config).items())
        self.tracker.log({"settings": f"| setting | value |\n|---|---|\n{table}"}, step=max(0, step - 1))

    def video(self, name: str, video: Rendering) -> None:
        summary: Any = import_module("tensorboard.compat.proto.summary_pb2").Summary  # made when it is imported
        picture, (width, height) = gif(video.path)
        image = summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
        writer = self.tracker.tracker
        writer.file_writer.add_summary(summary(value=[summary.Value(tag=name, image=image)]), video.step)
        writer.flush()


class _Trackio(_Tracker):
    def __init__(self, config: TrainConfig, step: int, known: str | None) -> None:
        from accelerate.tracking import TrackioTracker

        del step
        # A name is an identity here: of two runs with the same name the latest would be continued.
        self.known = known or f"{run_name(config)}-{uuid.uuid4().hex[:4]}"
        settings = flat_settings(config)
        self.tracker = TrackioTracker(
            project_name(config), name=self.known, resume="allow", embed=False, config=settings
        )
        self.tracker.start()

    def video(self, name: str, video: Rendering) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        shown = trackio.Video(str(video.path), caption=video.prompt, format="mp4")
        self.log({name: shown}, video.step)


_TRACKERS: dict[str, type[_Tracker]] = {"wandb": _Wandb, "tensorboard": _TensorBoard, "trackio": _Trackio}


class TrackerListener(Listener):
    """Reports a run to one tracker.

    Args:
        name: of the tracker.
        config: resolved settings.
    """

    def __init__(self, name: str, config: TrainConfig) -> None:
        self.name = f"report_to = {name}"
        self._service, self._config = name, config
        self._folder = config.output_path
        self._tracker: _Tracker | None = None

    def step(self, row: dict[str, Any], total: int) -> None:
        del total
        self._opened(row["step"]).log(scalars(row, "train"), row["step"])

    def evaluation(self, row: dict[str, Any]) -> None:
        self._opened(row["step"] + 1).log(scalars(row, "eval"), row["step"])

    def event(self, row: dict[str, Any]) -> None:
        if row["kind"] != "video":
            return
        path = self._folder / row["path"]
        video = next((video for video in read_videos(self._folder, row["step"]) if video.path == path), None)
        if video is not None:
            self._opened(row["step"] + 1).video(_video_name(video), video)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.tracker.finish()
        self._tracker = None

    def _opened(self, step: int) -> _Tracker:
        """The tracker; a run that begins anew is a new one there, and one that goes on the same."""
        if self._tracker is None:
            known = read_object(self._folder / MEMORY_FILE) or {}
            same = known.get(self._service) if step > 1 else None
            self._tracker = _TRACKERS[self._service](self._config, step, same)
            write_json(self._folder / MEMORY_FILE, {**known, self._service: self._tracker.known})
        return self._tracker


def _video_name(video: Rendering) -> str:
    """The same at every step, so that a tracker shows a row of them."""
    width, height = video.size
    return f"validation/{video.nickname}-{width}x{height}-{video.seed}" + ("-ema" if video.ema else "")


def tracker_listeners(config: TrainConfig) -> list[Listener]:
    """One for each tracker that `report_to` names."""
    return [TrackerListener(name, config) for name in trackers_of(config)]


def login_problems(config: TrainConfig) -> list[Problem]:
    """What a tracker would find out when the first step is done: that nobody is logged in."""
    if "wandb" not in trackers_of(config):
        return []
    import wandb  # pyright: ignore[reportMissingImports]

    if wandb.setup().settings.mode != "online" or _is_logged_in(wandb):
        return []
    message = "nobody is logged in to wandb on this machine"
    fix = "run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline to keep everything in output_dir"
    return [Problem("report_to", config.report_to, message, fix)]


def _is_logged_in(wandb: Any) -> bool:
    try:
        return wandb.login(prompt=False, verify=False)
    except TypeError:  # an older version, which would ask back
        return bool(wandb.api.api_key)
