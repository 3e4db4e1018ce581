"""One run of a sweep, in a process of its own: `python -m tunerkit.batch.run_one RUN_FOLDER`.

It holds the run's lock and its GPU's lock, executes the notebook with papermill in a kernel of its own, and says in
`state.json` how it went. A first SIGINT or SIGTERM lets the training save a checkpoint and end; a second one ends the
run at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tunerkit.batch.folders import LOCK, NOTEBOOK, RunFolder, one_line, read_run
from tunerkit.batch.gpus import VARIABLE, one_gpu, visible_gpus
from tunerkit.batch.plan import OUTPUT
from tunerkit.errors import TunerkitError
from tunerkit.files import process_runs, read_json, write_atomically
from tunerkit.running.locks import held, is_held
from tunerkit.training.run_folder import send_command

DONE, FAILED, INTERRUPTED = 0, 1, 130
TRAINING_SECONDS = 120.0
"""How long a training that outlives its notebook is waited for after it was told to stop."""
AUTOSAVE_SECONDS = 20
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Interruption:
    """Passes the first signal on to the notebook; raises KeyboardInterrupt at the second.

    Attributes:
        asked: whether there was a signal.
        pass_on: what to do at the first one; None: raise.
    """

    def __init__(self) -> None:
        self.asked = False
        self.pass_on: Callable[[], None] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        first, self.asked = not self.asked, True
        if not first or self.pass_on is None:
            raise KeyboardInterrupt
        self.pass_on()


def main(folder: Path) -> int:
    """Execute the run in `folder`; the exit status says how it went."""
    run = read_run(folder)
    interruption = Interruption()
    with held(run.path / LOCK) as taken:
        if not taken:
            print("another process works on this run", file=sys.stderr)
            return FAILED
        started = time.time()
        facts: dict[str, Any] = {"pid": os.getpid(), "started": started}
        run.write_state(state="running", **facts)
        try:
            with one_gpu(visible_gpus(), lambda: run.write_state(state="waiting", **facts)) as gpu:
                if gpu is not None:
                    os.environ[VARIABLE] = gpu.name
                    facts |= {"gpu": gpu.key}
                facts |= {"started": (started := time.time())}
                run.write_state(state="running", **facts)
                error = _execute(run, interruption)
        except KeyboardInterrupt:
            error = "interrupted"
        state = "interrupted" if interruption.asked else "failed" if error else "done"
        facts |= {"seconds": time.time() - started, "peak_ram": _peak_ram()}
        run.write_state(state=state, **facts, error=error)
    return {"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}[state]


def _execute(run: RunFolder, interruption: Interruption) -> str:
    """Execute the notebook; what went wrong in one line, empty if nothing did."""
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    target = run.path / NOTEBOOK
    manager = AsyncKernelManager(kernel_name=_kernel_name(run.notebook))

    def stop() -> None:
        pid = getattr(manager.provisioner, "pid", None)
        if _training(run.output) != pid:  # a process of its own, which an interrupt of the notebook does not reach
            _stop_training(run.output)
        if pid:
            os.killpg(os.getpgid(pid), signal.SIGINT)

    interruption.pass_on = stop
    parameters = dict(run.parameters)
    if OUTPUT in papermill.inspect_notebook(str(run.notebook)):
        parameters[OUTPUT] = str(run.output)
    try:
        papermill.execute_notebook(
            str(run.notebook),
            str(target),
            parameters=parameters,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stdout,
            autosave_cell_every=AUTOSAVE_SECONDS,
            km=manager,
        )
    except papermill.PapermillExecutionError as error:
        print(str(error))
        return one_line(f"cell {error.exec_count}: {error.ename}: {error.evalue}")
    except Exception as error:  # the kernel died or could not be started, the notebook cannot be written, ...
        print(f"{type(error).__name__}: {error}")
        return one_line(f"{type(error).__name__}: {error}")
    finally:
        interruption.pass_on = None
        _end_kernel(manager)
        _end_training(run.output)
        lighten(target)
    return ""


def lighten(notebook: Path) -> None:
    """Drop what only a live kernel could show: it is large, and an untrusted notebook has no use for it."""
    try:
        document = json.loads(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    document["metadata"].pop("widgets", None)
    for cell in document["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
    write_atomically(notebook, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _kernel_name(notebook: Path) -> str:
    metadata = json.loads(notebook.read_text(encoding="utf-8")).get("metadata", {})
    return metadata.get("kernelspec", {}).get("name", "python3")


def _end_kernel(manager: Any) -> None:
    """Shut the kernel down; the hard way where it does not listen."""
    from jupyter_core.utils import run_sync

    async def shut_down() -> None:
        await manager.shutdown_kernel(now=False)

    pid = getattr(manager.provisioner, "pid", None)
    with contextlib.suppress(Exception):  # a kernel that was never started, or is gone already
        run_sync(shut_down)()
    if pid and getattr(manager.provisioner, "process", None) is not None:
        with contextlib.suppress(OSError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def _end_training(output: Path) -> None:
    """Stop a training that outlives its notebook: it would hold the GPU that the next run gets."""
    told = False
    until = time.monotonic() + TRAINING_SECONDS
    while (pid := _training(output)) is not None and time.monotonic() < until:
        if not told:
            told = True
            _stop_training(output)
        time.sleep(0.5)
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _training(output: Path) -> int | None:
    """The process that trains into a folder now: it holds the folder's lock."""
    if not is_held(output / ".lock"):
        return None
    try:
        pid = read_json(output / "status.json")["pid"]
    except Exception:  # one that has just begun to write
        return None
    return pid if isinstance(pid, int) and process_runs(pid) else None


def _stop_training(output: Path) -> None:
    with contextlib.suppress(TunerkitError):  # no training yet
        send_command(output, "stop")


def _peak_ram() -> int | None:
    """The most memory that the kernel has held, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # bytes there, KiB on Linux


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
