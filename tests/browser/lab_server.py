"""JupyterLab for a test: a port, a token and folders of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
OURS = (ROOT, ROOT / "widgets")
"""Where the kernels find the packages under test."""

SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "docmanager-extension/plugin": {"autosave": False},
}
"""No pop-up may cover a button, and nothing is saved unasked."""


class LabServer:
    """JupyterLab on a free loopback port, as somebody meets it who has just installed it.

    Settings, configuration, data, runtime files, workspaces and HOME are new folders: nothing of the user's is read
    or changed. A context manager; leaving it ends the server and its kernels.

    Args:
        folder: for all that the server writes; `notebooks` in it is what the page can open.
        python: whose JupyterLab to start.
    """

    def __init__(self, folder: Path, python: str | Path = sys.executable) -> None:
        self.root = folder / "notebooks"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.token = secrets.token_hex(16)
        self._folder, self._python = folder, Path(python)
        self._log = folder / "lab.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        for name, values in SETTINGS.items():
            file = self._folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        port = self.url.rpartition(":")[2]
        options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"]
        options += [f"--ServerApp.root_dir={self.root}", "--expose-app-in-browser"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "jupyterlab", *options],
                cwd=self.root,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all kernels and the server."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()  # the server shuts its kernels down
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._process = None

    def request(self, path: str, method: str = "GET") -> Any:
        """Ask the server's own interface; the answer's JSON, None where there is none.

        Raises:
            OSError: no or a refusing answer.
        """
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def end_kernels(self) -> None:
        """Free the memory of all kernels."""
        for session in self.request("/api/sessions"):
            with contextlib.suppress(OSError):  # already gone
                self.request(f"/api/sessions/{session['id']}", "DELETE")

    def log(self, lines: int = 30) -> str:
        """What the server and its kernels printed last."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _environment(self) -> dict[str, str]:
        """The caller's, without what would lead to the user's own files, or to other packages than the ones meant."""
        foreign = ("JUPYTER", "IPYTHON", "XDG_", "PYTEST", "TUNERKIT_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        places = {
            "HOME": "home",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        for place in places.values():
            (self._folder / place).mkdir(exist_ok=True)
        return {
            **kept,
            **{name: str(self._folder / place) for name, place in places.items()},
            "JUPYTER_TOKEN": self.token,
            "PATH": os.pathsep.join([str(self._python.parent), kept.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(map(str, OURS)),
            "HF_HUB_OFFLINE": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }

    def _wait_until_up(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended at its start:\n{self.log()}")
            with contextlib.suppress(OSError):
                self.request("/api/status")
                return
            time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not answer in {START_SECONDS} s:\n{self.log()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
