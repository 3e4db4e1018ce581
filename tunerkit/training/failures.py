"""Telling why a training failed: to whoever watches its folder, and to whoever called it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunerkit.cache.store import CacheEntryError
from tunerkit.devices import free_memory, is_out_of_memory
from tunerkit.errors import OutOfMemoryError
from tunerkit.running.memory import memory_hint

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.training.run_folder import RunFolder


@contextlib.contextmanager
def told_failures(folder: RunFolder, config: TrainConfig, *, main: bool) -> Iterator[None]:
    """Leave the reason of a failure in status.json; where memory ran out, say what to change and free it.

    Args:
        folder: the run's folder.
        config: resolved settings.
        main: whether this process is the one that writes to the folder.

    Raises:
        OutOfMemoryError: as `explained_memory`.
    """
    try:
        with explained_memory(config):
            yield
    except Exception as error:
        if main and isinstance(error, OutOfMemoryError):
            folder.fail(f"memory ran out ({error.reason})", error.hint)
        elif main:
            folder.fail(str(error) or type(error).__name__)
        raise


@contextlib.contextmanager
def saved_without_cache(save: Callable[[], Path]) -> Iterator[None]:
    """Where an entry of the cache cannot be made anew, keep the weights, which are those of the last whole step.

    Args:
        save: writes the checkpoint and gives its folder.

    Raises:
        CacheEntryError: that also names the checkpoint.
    """
    try:
        yield
    except CacheEntryError as error:
        path = save()
        step = path.name.rpartition("-")[2]
        raise CacheEntryError(
            f"{str(error).rstrip('.')}. The training up to step {step} is saved in {path.name}"
        ) from error


@contextlib.contextmanager
def explained_memory(config: TrainConfig, release: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Where memory runs out, free what the failed calls held and say what to change.

    Args:
        config: resolved settings.
        release: lets go of tensors that something else refers to.

    Raises:
        OutOfMemoryError: instead of what torch raised.
    """
    reason = ""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = _first_line(error)
        forget_frames(error)
    if reason:
        release()
        free_memory()
        raise OutOfMemoryError(reason, memory_hint(config))


def forget_frames(error: BaseException) -> None:
    """Clear the local variables of the calls that failed.

    A notebook keeps the last exception, that keeps the frames, and those the tensors: without this the memory stays
    taken until the kernel ends.
    """
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__


def _first_line(error: BaseException) -> str:
    """The first sentence of what torch says; the rest is advice that does not fit."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return text.partition(". ")[0].rstrip(".")
