"""What this machine offers and what it lacks: Python, torch and GPU, memory, disk, packages, token, ffmpeg."""

from __future__ import annotations

import html
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warn", "fail"]

ENOUGH_RAM_GIB = 12.0
"""For the 2B model: one component at a time passes through RAM, the text encoder (Gemma-2 2B, 5 GiB) the largest."""
ENOUGH_HUB_GIB = 30.0
"""For a whole checkpoint of the 2B model and the next one."""
ENOUGH_OUTPUT_GIB = 10.0
"""For caches, checkpoints of an adapter, and videos."""
TOO_LITTLE_GIB = 1.0
EXTRAS = {
    "workbench": "notebooks",
    "demo": "real clips in the demo",
    "optimi": "the optimi-* optimizers",
    "bitsandbytes": "the bnb-* optimizers",
}
_PROGRAM_SECONDS = 20.0
"""How long another program may take to answer."""


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, what was found, whether that is good, and what to do."""

    what: str
    found: str
    state: State = "ok"
    fix: str = ""


class DoctorReport:
    """The rows of `doctor()`.

    Attributes:
        rows: in the order in which they are shown.
    """

    def __init__(self, rows: Iterable[Check]) -> None:
        self.rows = tuple(rows)

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(row.state != "fail" for row in self.rows)

    def to_text(self) -> str:
        """A line per row, with the fix below it, and a closing sentence."""
        width = max(len(row.what) for row in self.rows)
        lines = []
        for row in self.rows:
            lines.append(f"{row.state:<4}  {row.what:<{width}}  {row.found}")
            if row.fix:
                lines.append(f"{'':<4}  {'':<{width}}  fix: {row.fix}")
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """`"Ready."`, or how many things to look at."""
        failed = sum(row.state == "fail" for row in self.rows)
        warned = sum(row.state == "warn" for row in self.rows)
        if failed:
            return f"Not ready: {failed} of {len(self.rows)} checks failed."
        return f"Ready, with {warned} warning{'s' if warned > 1 else ''}." if warned else "Ready."

    def _repr_html_(self) -> str:
        colours = {"ok": "#2e7d32", "warn": "#b26a00", "fail": "#c62828"}
        body = ""
        for row in self.rows:
            found = html.escape(row.found) + (f"<br><i>fix: {html.escape(row.fix)}</i>" if row.fix else "")
            state = f"<b style='color:{colours[row.state]}'>{row.state}</b>"
            cells = (state, html.escape(row.what), found)
            body += "<tr>" + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in cells) + "</tr>"
        return f"<table><tbody>{body}</tbody></table><p>{html.escape(self.summary())}</p>"

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"DoctorReport({self.summary()})"


def doctor() -> DoctorReport:
    """Look at this machine. Takes a few seconds, because torch is imported; nothing is downloaded."""
    looks: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
        ("Python", _python),
        ("packages", _packages),
        ("torch", _accelerator),
        ("RAM", _memory),
        ("disk", _disks),
        ("hub token", _hub_token),
        ("ffmpeg", _ffmpeg),
        ("extras", _extras),
    )
    return DoctorReport(check for what, look in looks for check in _made(what, look))


def _made(what: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The rows of one look; a failed row where a package that the look itself needs is missing."""
    try:
        return list(look())
    except ImportError as error:
        return [Check(what, f"cannot be looked at: {error}", "fail", "install tunerkit again, with all it needs")]


# Packages ------------------------------------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} at {sys.executable}"
    try:
        wanted = importlib.metadata.metadata("tunerkit")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        wanted = ""
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    yield Check("Python", found) if fits else Check("Python", found, "fail", f"use a Python of {wanted}")


def _requirements(extra: str = "") -> Iterator[tuple[str, str]]:
    """(package, version range) of everything that tunerkit, or one of its extras, needs.

    Raises:
        importlib.metadata.PackageNotFoundError: if tunerkit is not installed as a package.
    """
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("tunerkit") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always != bool(extra) and (marker is None or marker.evaluate({"extra": extra})):
            yield requirement.name, str(requirement.specifier)


def _packages() -> Iterator[Check]:
    """The needed packages, in one row when all fit, else a row for each that does not."""
    try:
        needed = list(_requirements())
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "tunerkit runs from a folder, not installed", "warn", "pip install -e . in that folder")
        return
    wrong = [check for name, wanted in needed if (check := _package(name, wanted)) is not None]
    if wrong:
        yield from wrong
        return
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name, _ in needed)
    yield Check("packages", f"all {len(needed)} in range: {found}")


def _package(name: str, wanted: str) -> Check | None:
    """What is wrong with an installed package; None when it fits."""
    from packaging.specifiers import SpecifierSet

    fix = f"pip install '{name}{wanted}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "not installed", "fail", fix)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return None
    return Check(name, f"{version}, but {wanted} is needed", "fail", fix)


def _extras() -> Iterator[Check]:
    for extra, purpose in EXTRAS.items():
        try:
            needed = list(_requirements(extra))
        except importlib.metadata.PackageNotFoundError:
            return
        wrong = [check for name, wanted in needed if (check := _package(name, wanted)) is not None]
        install = f"pip install 'tunerkit[{extra}]'"
        if not wrong:
            yield Check(f"extra {extra}", f"installed, for {purpose}")
        elif all(check.found == "not installed" for check in wrong):
            missing = ", ".join(check.what for check in wrong)
            yield Check(f"extra {extra}", f"not installed ({missing}); only needed for {purpose}", "ok", install)
        else:
            found = "; ".join(f"{check.what} {check.found}" for check in wrong)
            yield Check(f"extra {extra}", found, "warn", install)


# Hardware ------------------------------------------------------------------------------------------------------


def _accelerator() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken CUDA installation can raise nearly anything here
        yield Check("torch", f"cannot be imported: {error}", "fail", "install torch again: https://pytorch.org")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    yield Check("torch", f"{torch.__version__} ({build})")
    if driver := _driver():
        yield Check("GPU driver", driver)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(index)
    elif torch.backends.mps.is_available():
        yield Check("GPU", "Apple GPU (mps)", "warn", "set device = mps; CUDA is what the models are made for")
    elif shutil.which("nvidia-smi"):
        fix = (
            "check that nvidia-smi lists a GPU; a newer driver may be needed"
            if torch.version.cuda
            else "install a CUDA build of torch: https://pytorch.org"
        )
        yield Check("GPU", "there is an NVIDIA driver, but torch sees no GPU", "warn", fix)
    else:
        yield Check("GPU", "none. CPU only: fine for the tiny demo, not for a real model", "warn")


def _driver() -> str:
    """The version of the NVIDIA driver; empty where there is none, or it does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.partition("\n")[0].strip()


def _gpu(index: int) -> Check:
    import torch

    properties = torch.cuda.get_device_properties(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
    except Exception as error:  # another program may hold the card, or it may be in a fault state
        return Check(f"GPU {index}", f"{properties.name}: {error}", "fail", "see what uses it: nvidia-smi")
    # Compute capability 8.0 (Ampere) is the first with bfloat16 matrix units, 8.9 (Ada) with float8 ones; older cards
    # emulate them slowly or not at all.
    hip = getattr(torch.version, "hip", None) is not None
    bf16 = properties.major >= 8 or hip
    fp8 = (properties.major, properties.minor) >= (8, 9) and not hip
    abilities = ", ".join(f"{name}: {'yes' if able else 'no'}" for name, able in (("bf16", bf16), ("fp8", fp8)))
    found = f"{properties.name}, {total / 2**30:.1f} GiB ({free / 2**30:.1f} free), {abilities}"
    if bf16:
        return Check(f"GPU {index}", found)
    return Check(f"GPU {index}", found, "warn", "set mixed_precision = fp16")


def _memory() -> Iterator[Check]:
    total, available = memory_gib()
    found = f"{total:.1f} GiB, {available:.1f} available"
    fix = f"close other programs; a real model wants about {ENOUGH_RAM_GIB:g} GiB"
    yield Check("RAM", found) if available >= ENOUGH_RAM_GIB else Check("RAM", found, "warn", fix)


def memory_gib() -> tuple[float, float]:
    """(total, available) memory in GiB, within the limit of the container if there is one."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _first_number("memory.max", "memory/memory.limit_in_bytes")
    used = _first_number("memory.current", "memory/memory.usage_in_bytes")
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    return total / 2**30, available / 2**30


def _first_number(*names: str) -> int | None:
    """The number in the first of these files of the control group (version 2, then version 1)."""
    for name in names:
        try:
            return int(Path("/sys/fs/cgroup", name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def _disks() -> Iterator[Check]:
    from huggingface_hub import constants

    yield _disk("disk here", Path.cwd(), ENOUGH_OUTPUT_GIB, "work in a folder on a larger disk")
    hub = Path(constants.HF_HOME)
    yield _disk("disk of HF_HOME", hub, ENOUGH_HUB_GIB, "set HF_HOME to a folder on a larger, lasting disk")


def _disk(what: str, folder: Path, enough: float, fix: str) -> Check:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(existing).free / 2**30
    found = f"{free:.1f} GiB free at {folder}"
    if not os.access(existing, os.W_OK):
        return Check(what, f"{found}, not writable", "fail", fix)
    if free < enough:
        return Check(what, found, "fail" if free < TOO_LITTLE_GIB else "warn", fix)
    return Check(what, found)


# Programs and services -----------------------------------------------------------------------------------------


def _hub_token() -> Iterator[Check]:
    from huggingface_hub import get_token

    none = "none; only models behind a licence form need one"
    fix = "hf auth login, or set HF_TOKEN"
    yield Check("hub token", "present") if get_token() else Check("hub token", none, "ok", fix)


def _ffmpeg() -> Iterator[Check]:
    """Whether the ffmpeg that videos are written with runs and can write H.264."""
    fix = "pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264"
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run(
            [program, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=True
        ).stdout
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        yield Check("ffmpeg", f"not usable: {error}", "fail", fix)
        return
    fits = "libx264" in listed
    none = f"{program} has no H.264 encoder (libx264)"
    yield Check("ffmpeg", f"{program} with libx264") if fits else Check("ffmpeg", none, "fail", fix)
