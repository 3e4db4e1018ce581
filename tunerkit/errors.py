"""What tunerkit tells a person when a request cannot be carried out.

Every error that a setting, a file or a missing package causes is a `TunerkitError`: its text is one complete message
that names the setting or file and the fix. The command line prints it without a traceback and exits with status 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunerkit.running.status import RunStatus


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings.

    `key` is the setting as the user writes it (`datasets[0].video.num_frames` for nested ones), `value` what was given,
    `message` what is wrong with it and `fix` what to write instead.
    """

    key: str
    value: Any
    message: str
    fix: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value!r}"
        return f"{self.key}{given}: {self.message}. Fix: {self.fix}"


@dataclass(frozen=True)
class Note:
    """Something that was understood differently from how it was written, or that has no effect; never an error."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class TunerkitError(Exception):
    """The request cannot be carried out as written; the text says what to change."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, since the request is at fault and not the code."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(TunerkitError):
    """All problems of the settings, at once.

    Args:
        problems: at least one problem.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 setting is wrong:" if count == 1 else f"{count} settings are wrong:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class DatasetError(TunerkitError):
    """The clips, captions or masks cannot be used."""


class ModelError(TunerkitError):
    """A checkpoint of a base model is missing, incomplete or of another family."""


class CheckpointError(TunerkitError):
    """A training checkpoint or adapter file cannot be used."""


class MissingExtraError(TunerkitError):
    """A feature needs a package that is not installed.

    Args:
        feature: what was asked for, with its setting (`optimizer = 'optimi-adamw'`).
        package: the package that is missing, as pip names it.
        extra: the extra of tunerkit that brings it, if there is one.
    """

    def __init__(self, feature: str, package: str, extra: str | None = None) -> None:
        install = f"pip install 'tunerkit[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{feature} needs the package {package}, which is not installed. Fix: {install}")


class NonFiniteLossError(TunerkitError):
    """The loss or a gradient became NaN or infinite; nothing was updated and the last checkpoint is whole."""


class OutOfMemoryError(TunerkitError):
    """A GPU or the machine has too little memory for the settings.

    Args:
        reason: what was tried, for example "CUDA out of memory. Tried to allocate 2.00 GiB".
        hint: what to change.
    """

    def __init__(self, reason: str, hint: str) -> None:
        self.reason, self.hint = reason, hint
        super().__init__(f"memory ran out ({reason}). Fix: {hint}")


class RunFailedError(TunerkitError):
    """A training in a process of its own failed or died.

    Args:
        status: its last status.
        folder: its output folder.
    """

    def __init__(self, status: RunStatus, folder: object) -> None:
        self.status = status
        words = [f"the training in {folder} {status.state}: {status.error or 'see out.log'}"]
        if status.hint:
            words.append(f"Fix: {status.hint}")
        if status.log:
            words.append("\n".join(["The last lines of out.log:", *(f"  {line}" for line in status.log)]))
        super().__init__("\n".join(words))
