"""Whether the buttons of a dashboard work in a cell that is busy, with one ipykernel after the other.

    python tests/browser/kernel_matrix.py 6.29.5 7.3.0

Each version gets an environment of its own in a temporary folder, which needs a package index; all are offered by one
JupyterLab, the one that runs this script, and follow one and the same training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "widgets"), str(ROOT / "tests")]

import tunerkit as tk  # noqa: E402
from browser import Browser, Dashboard, LabServer, wait_until  # noqa: E402
from browser.workbench import SETTINGS, opening, write_notebook  # noqa: E402

VERSIONS = ("6.17.1", "6.29.5", "7.1.0", "7.3.0", "7.4.0")
WITH_IT = ("ipywidgets", "anywidget", "jupyter_ui_poll")
BUTTONS = """\
import ipywidgets

def control(name, action):
    button = ipywidgets.Button(description=name)
    button.on_click(lambda _: action())
    return button

ipywidgets.HBox([control("Pause", run.pause), control("Resume", run.resume)])"""
CELLS = {"await run.finished()": BUTTONS, "await tw.follow(run)": ""}
"""A cell that waits, and what shows the buttons before it; the second has its own."""


def make_bed(folder: Path, version: str) -> Path:
    """An environment with this ipykernel, that finds all else in the one that runs this script; its interpreter.

    Raises:
        subprocess.CalledProcessError: it could not be made.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    packages = [f"ipykernel=={version}", *WITH_IT]
    # An older kernel came with a library that no longer comes with Python's installer.
    packages += ["setuptools<81"] if version.startswith("6.") else []
    subprocess.run([str(python), "-m", "pip", "install", "-qq", *packages], check=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    # Lines of a .pth file are searched after the folder that holds it.
    (own / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def offer_kernel(data: Path, version: str, python: Path) -> None:
    """Let a server with this data folder start the kernel, under its version as its name."""
    spec = data / "kernels" / version / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": version, "language": "python"}))


def try_kernel(browser: Browser, lab: LabServer, version: str, project: Path) -> dict[str, str]:
    """What came of the clicks, by the cell that was busy."""
    run = tk.attach(project / "output")
    results = {}
    for number, (waiting, buttons) in enumerate(CELLS.items()):
        first = f"{opening(project, **SETTINGS)}\nrun = tk.attach(config.output_dir)"
        cells = [first, buttons or "None", waiting]
        file = write_notebook(lab.root / f"{version}-{number}.ipynb", *cells, kernel=version)
        with browser.open(lab, file.name) as notebook:
            notebook.start_all()
            dashboard = Dashboard(notebook, 1 if buttons else 2, run)
            results[waiting] = _outcome(dashboard, plain=bool(buttons))
        run.resume()
    return results


def _click(dashboard: Dashboard, *, plain: bool) -> None:
    """Pause and resume; plain buttons show no state, the run's folder does."""
    if not plain:
        dashboard.wait_state("training", 60)
        dashboard.pause_and_resume()
        return
    wait_until(lambda: dashboard.notebook.cells()[1]["count"] is not None)
    for button, state in (("Pause", "paused"), ("Resume", "running")):
        dashboard.click(button)
        wait_until(lambda state=state: dashboard.run.status.state == state, 15)
    assert dashboard.notebook.cells()[2]["count"] is None


def _outcome(dashboard: Dashboard, *, plain: bool) -> str:
    started = time.monotonic()
    try:
        _click(dashboard, plain=plain)
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return f"works ({time.monotonic() - started:.1f} s)"


def main(versions: list[str]) -> int:
    """The exit status: 1 where a version failed."""
    with tempfile.TemporaryDirectory(prefix="kernels-") as name:
        folder = Path(name)
        project = tk.demo.create(folder / "project", family="sanavideo", clips="generated").parent
        for version in versions:
            offer_kernel(folder / "lab" / "data", version, make_bed(folder / version, version))
        run = tk.start(tk.load_config(project / "config.json", **SETTINGS))
        failed = False
        try:
            with LabServer(folder / "lab") as lab, Browser(folder / "profile") as browser:
                for version in versions:
                    for waiting, result in try_kernel(browser, lab, version, project).items():
                        print(f"ipykernel {version:8} {waiting:22} {result}", flush=True)
                        failed |= "FAILED" in result
        finally:
            run.kill()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(VERSIONS)))
