"""Files appear whole or not at all, and as readable as the person's umask says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunerkit.errors import ModelError
from tunerkit.families import checkpoint_files
from tunerkit.files import replacing


def test_a_file_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    """safetensors makes files for their owner alone; results on a shared machine are for the group."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.safetensors") as draft:
            save_file({"x": torch.zeros(1)}, draft)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fails() -> None:
        with replacing(target) as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_weights_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "vae" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"0" * 10)

    def refused(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_files, "_edges", refused)
    with pytest.raises(ModelError, match=r"weights.safetensors cannot be read \(permission denied\). Fix: make"):
        checkpoint_files.component_identity(str(tmp_path), ("vae",))
