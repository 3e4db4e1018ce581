"""The checkpoint protocol: torn, full, killed and damaged, on a real file system."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from tunerkit import files
from tunerkit.errors import CheckpointError, TunerkitError
from tunerkit.training.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    remove_temporary,
    save_checkpoint,
    verify,
)
from tunerkit.training.state_files import load_tensors, save_tensors


def write_state(folder: Path) -> None:
    (folder / "ema").mkdir()
    (folder / "ema" / "shadow.bin").write_bytes(b"shadow" * 1000)
    (folder / "weights.bin").write_bytes(b"weights" * 1000)


def save(folder: Path, *steps: int, keep: int = 0) -> None:
    for step in steps:
        save_checkpoint(folder, step, write_state, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def finished_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_checkpoint_is_whole_and_its_manifest_says_what_it_holds(tmp_path):
    folder = save_checkpoint(tmp_path / "run", 30, write_state, keep=0)
    assert folder == tmp_path / "run" / "checkpoint-30"
    assert verify(folder) is None
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (1, 30)
    assert set(manifest["files"]) == {"weights.bin", "ema/shadow.bin"}
    sha256sum = subprocess.run(["sha256sum", folder / "weights.bin"], capture_output=True, text=True, check=True)
    assert manifest["files"]["weights.bin"] == {"size": 7000, "sha256": sha256sum.stdout.split()[0]}
    assert names(tmp_path / "run") == ["checkpoint-30"]


def test_steps_are_ordered_as_numbers_and_pruned_from_the_oldest(tmp_path):
    save(tmp_path, 2, 10, 9, 100)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 9, 10, 100]
    save(tmp_path, 110, keep=3)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10, 100, 110]
    save(tmp_path, 50, keep=2)  # a resumed run: the one just written stays, whatever its number
    assert [step for step, _ in list_checkpoints(tmp_path)] == [50, 110]
    save(tmp_path, 51, keep=1)
    assert names(tmp_path) == ["checkpoint-51"]


def test_visibly_broken_ones_are_pruned_before_whole_ones(tmp_path):
    save(tmp_path, 1, 2, 3)
    damage_truncated(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-3" / "manifest.json").unlink()
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_the_same_step_again_replaces_the_folder(tmp_path):
    save(tmp_path, 5)

    def write_other(folder: Path) -> None:
        (folder / "new.txt").write_text("new")

    save_checkpoint(tmp_path, 5, write_other, keep=0)
    assert names(tmp_path) == ["checkpoint-5"]
    assert names(tmp_path / "checkpoint-5") == ["manifest.json", "new.txt"]
    assert verify(tmp_path / "checkpoint-5") is None


def damage_truncated(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"weights" * 10)


def damage_flipped(folder: Path) -> None:
    data = bytearray((folder / "weights.bin").read_bytes())
    data[3000] ^= 1
    (folder / "weights.bin").write_bytes(data)


def damage_missing(folder: Path) -> None:
    (folder / "ema" / "shadow.bin").unlink()


def damage_unfinished(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b'{"format": 1, "fil')


def damage_manifest_form(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1, "files": {"weights.bin": 3}}')


def damage_outside(folder: Path) -> None:
    entry = {"size": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "step": 2, "files": {"../secret": entry}}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_truncated, r"weights\.bin has 70 bytes instead of 7000"),
        (damage_flipped, r"weights\.bin was changed or damaged"),
        (damage_missing, r"ema/shadow\.bin is missing"),
        (damage_unfinished, r"manifest\.json is missing"),
        (damage_manifest, r"manifest\.json cannot be read"),
        (damage_manifest_form, r"weights\.bin is incomplete"),
        (damage_outside, r"lies outside the checkpoint"),
    ],
)
def test_a_damaged_newest_is_passed_over_with_its_reason(tmp_path, damage, reason):
    save(tmp_path, 1, 2)
    damage(tmp_path / "checkpoint-2")
    folder, warnings = find_checkpoint(tmp_path, "latest")
    assert folder == tmp_path / "checkpoint-1"
    assert len(warnings) == 1
    with pytest.raises(CheckpointError, match=reason):
        find_checkpoint(tmp_path, "checkpoint-2")
    assert "checkpoint-2" in warnings[0]
    assert warnings[0].rstrip(".").split(": ", 1)[1] in str(verify(tmp_path / "checkpoint-2"))


def test_an_empty_folder_and_a_file_are_no_checkpoints(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    folder, warnings = find_checkpoint(tmp_path, "latest")
    assert folder == tmp_path / "checkpoint-3"
    assert [warning.split()[0] for warning in warnings] == ["checkpoint-9"]


def test_latest_of_nothing_is_none_and_not_an_error(tmp_path):
    assert find_checkpoint(tmp_path / "new", "latest") == (None, [])
    (tmp_path / "checkpoint-9").mkdir()
    folder, warnings = find_checkpoint(tmp_path, "latest")
    assert folder is None
    assert len(warnings) == 1


def test_by_name_and_by_path(tmp_path):
    save(tmp_path / "run", 4, 5)
    assert find_checkpoint(tmp_path / "run", "checkpoint-4")[0] == tmp_path / "run" / "checkpoint-4"
    elsewhere = tmp_path / "kept"
    (tmp_path / "run" / "checkpoint-4").rename(elsewhere)
    assert find_checkpoint(tmp_path / "run", str(elsewhere)) == (elsewhere, [])
    with pytest.raises(CheckpointError, match=r"checkpoint 'checkpoint-4'.*found in .*: checkpoint-5"):
        find_checkpoint(tmp_path / "run", "checkpoint-4")


def test_a_full_disk_leaves_the_earlier_ones_and_says_what_to_do(tmp_path):
    save(tmp_path, 1)

    def fill(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 2, fill, keep=1)
    message = str(caught.value)
    assert str(tmp_path) in message
    for part in ("No space left", "GiB free", "checkpoints_total_limit", "untouched"):
        assert part in message
    assert names(tmp_path) == ["checkpoint-1"]
    assert find_checkpoint(tmp_path, "latest") == (tmp_path / "checkpoint-1", [])


def test_a_write_that_the_system_really_refuses(tmp_path):
    """A file size limit makes the safetensors writer itself fail half way."""
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-2 could not be saved.*File too large"):
            save_checkpoint(
                tmp_path,
                2,
                lambda folder: save_tensors(folder / "a.safetensors", {"a": torch.zeros(100_000)}),
                keep=1,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["checkpoint-1"]


def test_other_errors_of_the_writer_pass_through_and_leave_nothing(tmp_path):
    def interrupted(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, interrupted, keep=1)
    assert names(tmp_path) == []


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"checkpoint-1 could not be saved in .*Fix:"):
        save_checkpoint(tmp_path / "file" / "run", 1, write_state, keep=0)


KILLED = """
    import sys, time
    from pathlib import Path
    from tunerkit.training import checkpoints

    def write(folder):
        (folder / "weights.bin").write_bytes(b"w" * 100_000)

    def stall(*arguments):
        print("now", flush=True)
        time.sleep(60)

    output, moment = Path(sys.argv[1]), sys.argv[2]
    for step in (1, 2):
        checkpoints.save_checkpoint(output, step, write, keep=0)
    if moment == "writing":
        checkpoints.save_checkpoint(output, 3, lambda folder: (write(folder), stall()), keep=0)
    if moment == "sealing":
        checkpoints.write_json = stall
        checkpoints.save_checkpoint(output, 3, write, keep=0)
    if moment == "replacing":
        # between moving the earlier checkpoint-2 aside and putting the new one in its place
        rename = Path.rename
        Path.rename = lambda self, target: stall() if ".tmp-" in self.name else rename(self, target)
        checkpoints.save_checkpoint(output, 2, write, keep=0)
    if moment == "pruning":
        remove = checkpoints.shutil.rmtree
        checkpoints.shutil.rmtree = lambda folder: ((folder / "weights.bin").unlink(), stall())
        checkpoints.save_checkpoint(output, 3, write, keep=2)
"""


@pytest.mark.parametrize(
    ("moment", "whole"),
    [("writing", [1, 2]), ("sealing", [1, 2]), ("replacing", [1, 2]), ("pruning", [2, 3])],
)
def test_kill_9_at_any_moment_leaves_only_whole_checkpoints(tmp_path, moment, whole):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        hidden = [name for name in names(tmp_path) if name.startswith(".")]
        assert hidden
        assert remove_temporary(tmp_path) == []  # its owner still runs
        process.send_signal(signal.SIGKILL)
    assert remove_temporary(tmp_path)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in whole]
    assert all(verify(folder) is None for _, folder in list_checkpoints(tmp_path))
    assert find_checkpoint(tmp_path, "latest") == (tmp_path / f"checkpoint-{whole[-1]}", [])


def test_leftovers_of_this_process_go_and_other_folders_stay(tmp_path):
    save(tmp_path, 1)
    mine, dead = (
        tmp_path / f".checkpoint-2.tmp-{os.getpid()}",
        tmp_path / f".checkpoint-3.tmp-{finished_pid()}",
    )
    kept = [tmp_path / ".checkpoint-4.tmp-1", tmp_path / ".checkpoints", tmp_path / "validation"]
    for folder in (mine, dead, *kept):
        folder.mkdir()
        (folder / "x").write_text("x")
    assert remove_temporary(tmp_path) == sorted([mine, dead])
    assert names(tmp_path) == sorted([*(folder.name for folder in kept), "checkpoint-1"])


# Tensors


def test_tensors_of_any_layout_and_dtype_come_back_bit_for_bit(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    shared = torch.randn(5)
    tensors = {
        "transposed": base.T,
        "part": base[1:3],
        "twice": shared,
        "thrice": shared,
        "half": torch.randn(3, 3).bfloat16(),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "gradient": torch.nn.Parameter(torch.randn(2, 2)),
        "nothing": torch.zeros(0, 4),
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert (tmp_path / "t.safetensors").stat().st_size < 4096


def test_a_torn_tensor_file_is_named(tmp_path):
    (tmp_path / "t.safetensors").write_bytes(b"not a header")
    with pytest.raises(CheckpointError, match=r"t\.safetensors cannot be read"):
        load_tensors(tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=r"u\.safetensors cannot be read"):
        load_tensors(tmp_path / "u.safetensors")


# Files


def test_atomic_files_replace_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "état.json"
    files.write_json(path, {"step": 1, "text": "ünï"})
    assert files.read_json(path) == {"step": 1, "text": "ünï"}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"loss": float("nan")})

    def torn() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        torn()
    assert files.read_json(path)["step"] == 1
    assert names(path.parent) == ["état.json"]


@pytest.mark.parametrize(("content", "message"), [(b'{"a": 1,\n "b" 2}', "line 2"), (b'{"a": "\xff"}', "UTF-8")])
def test_json_that_cannot_be_read_names_the_file(tmp_path, content, message):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(TunerkitError, match=rf"c\.json.*{message}"):
        files.read_json(tmp_path / "c.json")


def test_leftover_files_of_dead_processes_go(tmp_path):
    dead, mine = tmp_path / f".a.bin.tmp-{finished_pid()}", tmp_path / f".b.bin.tmp-{os.getpid()}"
    older = tmp_path / f".c.bin.tmp-{os.getpid()}"
    running, ordinary = tmp_path / f".d.bin.tmp-{os.getppid()}", tmp_path / "e.tmp-1"
    for path in (dead, mine, older, running, ordinary):
        path.write_text("x")
    an_hour_ago = time.time() - 3600
    os.utime(older, (an_hour_ago, an_hour_ago))
    assert files.remove_leftovers(tmp_path) == sorted([dead, older])
    assert names(tmp_path) == sorted([mine.name, running.name, ordinary.name])
    assert files.remove_leftovers(tmp_path / "missing") == []


def test_the_protocol_needs_no_torch():
    modules = ("files", *(f"training.{name}" for name in ("checkpoints", "optimizers", "schedules")))
    imports = "; ".join(f"import tunerkit.{module}" for module in modules)
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
