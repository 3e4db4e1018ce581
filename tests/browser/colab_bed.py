"""A second environment with the old versions that Colab has, beside the one that runs the tests.

    python tests/browser/colab_bed.py

It holds JupyterLab 3.6 and the kernel's packages (colab_versions.txt) and nothing heavy: torch, diffusers and the rest
are those of the environment that runs this script, searched after its own. Making it needs a package index; where it is
complete already, nothing is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = Path(__file__).with_name("colab_versions.txt")
VARIABLE = "TUNERKIT_COLAB_BED"
"""Environment variable with the environment's folder."""
OWN = ("ipykernel", "IPython", "traitlets", "ipywidgets", "anywidget", "jupyterlab", "tornado", "zmq", "jupyter_client")
"""Modules that must not come from the other environment."""


def folder() -> Path:
    """Where the environment is or will be."""
    return Path(os.environ.get(VARIABLE) or ROOT / ".colab-bed").absolute()


def python() -> Path:
    """Its interpreter."""
    return folder() / "bin" / "python"


def missing() -> str:
    """Why it cannot be used, with the fix; empty where it can."""
    if _stamp().is_file() and _stamp().read_text() == _wanted():
        return ""
    return f"the environment with Colab's versions is not in {folder()}. Fix: python tests/browser/colab_bed.py"


def make() -> None:
    """Make the environment, from scratch where it is incomplete or of other versions.

    Raises:
        subprocess.CalledProcessError: a version could not be installed.
        RuntimeError: the folder holds something else, or a module comes from the wrong environment.
    """
    if not missing():
        return
    if folder().is_dir() and any(folder().iterdir()) and not (folder() / "pyvenv.cfg").is_file():
        raise RuntimeError(f"{folder()} holds something else. Fix: set {VARIABLE} to a folder of its own")
    shutil.rmtree(folder(), ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder())], check=True)
    install = [str(python()), "-m", "pip", "install", "-qq", "--no-deps", "--requirement", str(VERSIONS)]
    subprocess.run(install, check=True)
    own = Path(_ask("import sysconfig; print(sysconfig.get_path('purelib'))"))
    # Lines of a .pth file are searched after the folder that holds it.
    (own / "tests_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _check(own)
    _stamp().write_text(_wanted())


def _check(own: Path) -> None:
    """Its own packages come first, and the heavy ones are found."""
    names = (*OWN, "torch", "diffusers", "av")
    script = f"import importlib.util as u\nfor n in {names!r}: print(n, getattr(u.find_spec(n), 'origin', None))"
    origins = dict(line.split(maxsplit=1) for line in _ask(script).splitlines())
    wrong = [name for name, origin in origins.items() if (str(own) in origin) is not (name in OWN) or origin == "None"]
    if wrong:
        raise RuntimeError(f"from the wrong place in {folder()}: {', '.join(f'{n} ({origins[n]})' for n in wrong)}")


def _ask(script: str) -> str:
    return subprocess.run([str(python()), "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def _stamp() -> Path:
    return folder() / ".complete"


def _wanted() -> str:
    """Changes with whatever the environment depends on."""
    parts = [VERSIONS.read_text(), sys.version, sysconfig.get_path("purelib")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    make()
    print(f"Colab's versions: {python()}")
