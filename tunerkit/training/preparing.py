"""Filling the cache for a run, telling whoever watches its folder how far it is, and ending it there when asked to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tunerkit.cache.build import build_cache
from tunerkit.cache.progress import Progress, ProgressBar
from tunerkit.data.inspect import inspect_dataset
from tunerkit.errors import DatasetError

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.report import DatasetReport
    from tunerkit.data.samples import Sample
    from tunerkit.training.run_folder import RunFolder


class StoppedEarlyError(KeyboardInterrupt):
    """The run was asked to stop while it was prepared; what is cached stays."""


class ToldProgress:
    """Progress of filling the cache that is told in status.json, beside where it is shown.

    Args:
        folder: the run's folder, locked by this process.
        shown: as for `build_cache`: a bar, nothing, or a callable.
    """

    def __init__(self, folder: RunFolder, shown: Progress | bool) -> None:
        self._folder, self._shown = folder, shown
        self._bar: ProgressBar | None = None
        self._phase, self._done = "", 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """As `Progress`.

        Raises:
            StoppedEarlyError: if control.json asks the run to end.
        """
        self._folder.activity(f"encoding {phase} {done} of {total}")
        if callable(self._shown):
            self._shown(phase, done, total)
        elif self._shown:
            self._draw(phase, done, total)
        if self._folder.stop_asked:
            raise StoppedEarlyError

    def _draw(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase or self._bar is None:
            self.close()
            self._bar, self._phase, self._done = ProgressBar(phase, total, True), phase, 0
        self._bar.advance(done - self._done)
        self._done = done

    def close(self) -> None:
        """End the bar, if one is drawn."""
        if self._bar is not None:
            self._bar.__exit__()
        self._bar = None


def cached_samples(
    config: TrainConfig, folder: RunFolder | None, progress: Progress | bool
) -> tuple[DatasetReport, list[Sample], list[Sample]]:
    """What was found in the datasets, and the usable samples of training and of evaluation; fills the cache first.

    Args:
        config: resolved settings.
        folder: the run's folder, which is told how far it is; None in a process that does not write to it.
        progress: how to show the encoding, as for `build_cache`.

    Raises:
        DatasetError: if no clip is usable.
        StoppedEarlyError: if control.json asks the run to end.
    """
    if folder is not None:
        folder.activity("looking at clips")
    report = inspect_dataset(config)
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(contextlib.closing(ToldProgress(folder, progress))) if folder else progress
        result = build_cache(config, report=report, progress=told)
    failed = {failure.file for failure in result.failures}
    samples = [sample for sample in report.require_samples() if sample.file not in failed]
    if not samples:
        raise DatasetError(f"every clip failed while it was encoded:\n{result}")
    held_out = inspect_dataset(config, purpose="eval").samples if config.eval_datasets else ()
    held_out = [sample for sample in held_out if sample.file not in failed]
    wanted = config.eval_dataset_id
    if wanted is not None:  # of the datasets that are evaluated, or one that is trained
        held_out = [sample for sample in (*held_out, *samples) if sample.dataset == wanted]
    return report, samples, held_out
