"""How long a run is, counted from its data: samples, and the optimizer steps of a pass over them. No widgets here."""

from __future__ import annotations

import html
import math
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import tunerkit as tk
from tunerkit_widgets.guard import ERROR_COLOUR, error_html
from tunerkit_widgets.texts import text

_OTHER_GROUPS = ("optimizer", "adapter", "validation", "memory")
_OTHER_NAMES = frozenset(
    {
        *("max_train_steps", "num_train_epochs", "gradient_accumulation_steps", "seed", "caption_dropout_probability"),
        *("checkpoint_step_interval", "checkpoints_total_limit", "resume_from_checkpoint", "device", "mixed_precision"),
    }
)


class Counted(NamedTuple):
    """What was found for some data settings.

    Attributes:
        key: the data settings, see `data_key`.
        report: None where the datasets could not be looked at.
        plan: the order of batches; None without a usable sample.
        trouble: why nothing could be counted, as HTML.
    """

    key: str
    report: tk.DatasetReport | None = None
    plan: Any = None
    trouble: str = ""


class SampleCount:
    """Counts in a thread, one count at a time; figures are only ever given for the settings they were counted for.

    Args:
        tell: called from the thread after every count; must not raise.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wanted: tk.TrainConfig | None = None
        self._current: tk.TrainConfig | None = None
        self._counted: Counted | None = None
        self._folders: frozenset[str] = frozenset()

    def of(self, config: tk.TrainConfig) -> Counted | None:
        """What was counted for these settings; None where that was not done yet."""
        with self._lock:
            return self._counted if self._counted is not None and self._counted.key == data_key(config) else None

    def pending(self, config: tk.TrainConfig) -> bool:
        """Whether these settings are being counted, or next."""
        with self._lock:
            latest = self._wanted or self._current
            return latest is not None and data_key(latest) == data_key(config)

    def trusts(self, config: tk.TrainConfig) -> bool:
        """Whether counting needs nobody's word: its folders were counted before.

        A path that is being typed names other folders on the way, perhaps a whole disk, and a repository of the hub is
        downloaded first.
        """
        return _folders(config) <= self._folders

    def trust(self, config: tk.TrainConfig) -> None:
        """Let these folders be counted, except those that have to be downloaded."""
        self._folders |= {folder for folder in _folders(config) if not folder.startswith("huggingface:")}

    def known(self, config: tk.TrainConfig | None) -> tuple[Sequence[Any], bool]:
        """The samples, none where they were not counted; and whether counting needs nobody's word."""
        counted = self.of(config) if config else None
        samples = counted.report.samples if counted and counted.report else ()
        return samples, config is not None and self.trusts(config)

    def start(self, config: tk.TrainConfig) -> threading.Thread:
        """Count these resolved settings, next if another count is under way; the thread that does."""
        with self._lock:
            self._wanted = config
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tunerkit-count", daemon=True)
                self._thread.start()
            return self._thread

    def _work(self) -> None:
        while True:
            with self._lock:
                self._current, self._wanted = self._wanted, None
                if self._current is None:
                    self._thread = None
                    return
                config = self._current
            counted = count(config)
            with self._lock:
                self._current, self._counted = None, counted
            self._tell()


def count(config: tk.TrainConfig) -> Counted:
    """Look at the datasets of resolved settings; what goes wrong stands in `trouble`."""
    key = data_key(config)
    try:
        report = tk.inspect_dataset(config)
        return Counted(key, report, tk.batch_plan(config, report.samples) if report.samples else None)
    except tk.TunerkitError as error:
        return Counted(key, trouble=f"<span style='color:{ERROR_COLOUR}'>{html.escape(str(error))}</span>")
    except Exception as error:
        return Counted(key, trouble=error_html(error))


def data_key(config: tk.TrainConfig) -> str:
    """All settings that the count may depend on, as text."""
    return config.model_dump_json(exclude=_other_names())


@cache
def _other_names() -> set[str]:
    """The settings that the count cannot depend on."""
    return {info.name for info in tk.describe() if info.group in _OTHER_GROUPS} | _OTHER_NAMES


def length(config: tk.TrainConfig, counted: Counted) -> str:
    """The length of the run in words, for example "60 optimizer steps = 7.5 passes over 8 samples, batch 1"."""
    if counted.report is None:
        return ""
    files = len(counted.report.rows)
    if counted.plan is None:
        return text("form.no_samples", files=files)
    samples = _number(len(counted.report.samples), "form.sample", "form.samples")
    accumulated = config.gradient_accumulation_steps
    if config.max_train_steps:
        steps, passes = config.max_train_steps, float(config.max_train_steps * accumulated / counted.plan.mean_batches)
        key = "form.length"
    else:
        passes = config.num_train_epochs or 0
        steps = math.ceil(counted.plan.first_batch(passes) / accumulated)
        key = "form.length_of_passes"
    words = text(
        key,
        steps=_number(steps, "form.step", "form.steps"),
        passes=_number(passes, "form.pass", "form.passes"),
        samples=samples,
        batch=_batch(config),
    )
    if accumulated > 1:
        words += text("form.accumulated", count=accumulated)
    dropped = len(counted.report.dropped)
    return words + (text("form.dropped", dropped=dropped, files=files) if dropped else "")


def _batch(config: tk.TrainConfig) -> str:
    """The batch size, or the least and the largest of those that the datasets have."""
    sizes = {dataset.train_batch_size or config.train_batch_size for dataset in config.media_datasets}
    return str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)}-{max(sizes)}"


def _number(value: float, one: str, many: str) -> str:
    """A number with its noun, of which `one` and `many` are the keys."""
    short = f"{value:.1f}".removesuffix(".0") if value >= 1 else f"{value:.2g}"
    return text(one) if short == "1" else text(many, count=short)


def _folders(config: tk.TrainConfig) -> frozenset[str]:
    """What a count reads, and the folder that it keeps its findings in."""
    read = {
        f"{dataset.type}: {dataset.instance_data_dir or dataset.dataset_name}"
        for dataset in config.datasets
        if dataset.has_clips or dataset.has_masks
    }
    return frozenset({*read, f"cache: {config.cache_dir or config.output_dir}"})
