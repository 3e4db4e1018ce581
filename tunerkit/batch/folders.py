"""The files of a sweep.

`sweep.json` says what was asked for; each run has a folder `<number>-<label>` with `run.json` (what it is),
`state.json` (how it went), `notebook.ipynb` as executed, `log.txt`, and `output` (what the notebook wrote). A run that
goes on holds `.lock` in its folder, so that a killed run is known for what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerkit.batch.plan import OUTPUT, RunPlan, SweepPlan
from tunerkit.errors import TunerkitError
from tunerkit.files import read_json, write_json
from tunerkit.running.locks import is_held

ASKED, RUN, STATE = "sweep.json", "run.json", "state.json"
LOCK, LOG, NOTEBOOK = ".lock", "log.txt", "notebook.ipynb"
ENDED = ("done", "failed", "interrupted")
LIVE = ("waiting", "running")
KILLED = "its process was killed"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and what `run.json` in it says."""

    path: Path
    number: int
    identity: str
    settings: dict[str, Any]
    parameters: dict[str, Any]
    notebook: Path

    @property
    def output(self) -> Path:
        """Where the notebook writes to."""
        given = self.parameters.get(OUTPUT)
        return Path(given).expanduser().absolute() if given else self.path / "output"

    @property
    def alive(self) -> bool:
        """Whether a process works on it now."""
        return is_held(self.path / LOCK)

    def state(self) -> dict[str, Any]:
        """What `state.json` says, or what must have happened: `state` is queued, waiting (for a GPU), running, done,
        failed or interrupted."""
        try:
            state = read_json(self.path / STATE)
        except (FileNotFoundError, TunerkitError):
            return {"state": "queued"}
        if state["state"] in LIVE and not self.alive:
            # Asked in this order, an end between the two questions must be looked at once more.
            state = read_json(self.path / STATE)
            if state["state"] in LIVE:
                return {**state, "state": "interrupted", "error": KILLED}
        return state

    def write_state(self, **state: Any) -> None:
        """Replace `state.json`."""
        write_json(self.path / STATE, state)


class SweepFolder:
    """The folder of a sweep.

    Args:
        path: made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether a sweep was started here."""
        return (self.path / ASKED).is_file()

    def pid(self) -> int | None:
        """The process that works through the sweep now."""
        return self._asked().get("pid") if is_held(self.path / LOCK) else None

    def notebook(self) -> Path | None:
        """The notebook that was asked for last."""
        notebook = self._asked().get("notebook")
        return Path(notebook) if notebook else None

    def runs(self) -> list[RunFolder]:
        """All runs that have a folder, by number."""
        found = [_read(file) for file in self.path.glob(f"*/{RUN}")]
        return sorted((run for run in found if run is not None), key=lambda run: run.number)

    def shown(self) -> list[RunFolder]:
        """The runs that were asked for last, and finished ones of earlier requests."""
        asked = set(self._asked().get("identities", []))
        return [run for run in self.runs() if run.identity in asked or run.state()["state"] == "done"]

    def prepare(self, plan: SweepPlan, request: dict[str, Any]) -> list[RunFolder]:
        """Folders for all runs of a plan, in its order; runs that have one keep it.

        Raises:
            TunerkitError: the folder cannot be written.
        """
        known = {run.identity: run for run in self.runs()}
        numbers = iter(range(max((run.number for run in known.values()), default=0) + 1, 10**9))
        try:
            identities = [run.identity for run in plan.runs]
            write_json(self.path / ASKED, {**request, "notebook": str(plan.notebook), "identities": identities})
            return [known.get(run.identity) or self._make(run, next(numbers), plan.notebook) for run in plan.runs]
        except OSError as error:
            raise TunerkitError(
                f"output_dir = {str(self.path)!r} cannot be written ({error.strerror}). Fix: choose a folder you may "
                "write to"
            ) from error

    def _make(self, run: RunPlan, number: int, notebook: Path) -> RunFolder:
        folder = self.path / f"{number:03d}-{run.label}"
        facts = {
            "number": number,
            "identity": run.identity,
            "settings": dict(run.settings),
            "parameters": dict(run.parameters),
            "notebook": str(notebook),
        }
        write_json(folder / RUN, facts)
        return RunFolder(path=folder, **{**facts, "notebook": notebook})

    def _asked(self) -> dict[str, Any]:
        try:
            return read_json(self.path / ASKED)
        except FileNotFoundError:
            return {}


def read_run(folder: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        TunerkitError: there is none.
    """
    run = _read(folder / RUN)
    if run is None:
        raise TunerkitError(
            f"{folder} holds no run of a sweep ({RUN} is missing or broken). Fix: start the sweep again"
        )
    return run


def _read(file: Path) -> RunFolder | None:
    try:
        facts = read_json(file)
        return RunFolder(
            path=file.parent,
            number=int(facts["number"]),
            identity=str(facts["identity"]),
            settings=dict(facts["settings"]),
            parameters=dict(facts["parameters"]),
            notebook=Path(facts["notebook"]),
        )
    except (OSError, TunerkitError, KeyError, TypeError, ValueError):
        return None  # not a run's folder, or one whose making was cut short by a full disk


def one_line(text: str, longest: int = 300) -> str:
    """A message in one line, without the colours of a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = " ".join(plain.split())
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


def columns(runs: Iterable[RunFolder]) -> list[str]:
    """The names of all settings that distinguish runs, in the order in which they were asked for."""
    return list(dict.fromkeys(name for run in runs for name in run.settings))
