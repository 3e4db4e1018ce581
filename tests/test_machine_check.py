"""The check of the machine: what it finds, what it names, and what it survives."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunerkit.cli import main
from tunerkit.machine_check import Check, DoctorReport, doctor

Capture = pytest.CaptureFixture[str]


def test_doctor_finds_this_machine(capsys: Capture) -> None:
    import torch

    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    for what in ("Python", "GPU", "RAM", "disk of HF_HOME", "hub token", "ffmpeg"):
        assert re.search(rf"^(ok|warn)\s+{what}", out, re.MULTILINE), what


def test_doctor_names_packages_out_of_range(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    needed = ["numpy>=99", "no-such-package>=1", "pydantic>=2", "no-such-extra; extra == 'optimi'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needed)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: {"Requires-Python": ">=3.11"})
    report = doctor()
    rows = {row.what: row for row in report.rows}
    assert not report.ok
    assert (rows["numpy"].state, rows["numpy"].fix) == ("fail", "pip install 'numpy>=99'")
    assert rows["no-such-package"].found == "not installed"
    assert "pydantic" not in rows
    assert (rows["extra optimi"].state, rows["extra optimi"].fix) == ("ok", "pip install 'tunerkit[optimi]'")
    assert main(["doctor"]) == 1
    assert "Not ready: 2 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("capability", "abilities", "state"),
    [
        ((7, 5), "bf16: no, fp8: no", "warn"),
        ((8, 6), "bf16: yes, fp8: no", "ok"),
        ((8, 9), "bf16: yes, fp8: yes", "ok"),
    ],
)
def test_doctor_tells_driver_and_abilities_of_a_gpu(
    capability: tuple[int, int], abilities: str, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86.15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    properties = SimpleNamespace(name="RTX", major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**33, 3 * 2**33))
    rows = {row.what: row for row in doctor().rows}
    assert rows["GPU driver"].found == "570.86.15"
    assert (rows["GPU 0"].found, rows["GPU 0"].state) == (f"RTX, 24.0 GiB (8.0 free), {abilities}", state)


def test_doctor_survives_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    failed = {row.what for row in doctor().rows if row.state == "fail"}
    assert failed == {"ffmpeg", "RAM"}


def test_doctor_report_in_a_notebook() -> None:
    report = DoctorReport([Check("a", "<b>", "warn", "do & say"), Check("c", "fine")])
    assert report.ok
    assert "&lt;b&gt;" in report._repr_html_()
    assert "do &amp; say" in report._repr_html_()
    assert report.summary() == "Ready, with 1 warning."
    assert report.to_text().splitlines()[1].strip() == "fix: do & say"
