"""The store: whole files or none, in either form, found again by whoever asks, and never a wrong tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import load, load_file

from tunerkit.cache.store import LEAST_BYTES, CacheEntryError, NonFiniteEntryError, Store, machine, read_facts
from tunerkit.errors import TunerkitError

FACTS = {"file": "clip ä.mp4", "bucket": "64x64@5", "frames": (0, 1, 2)}
FORMS = pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(4, 2, 3, 3, generator=generator).transpose(2, 3),
        "mask": torch.tensor([1, 0]),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left
    )


@FORMS
def test_an_entry_is_an_ordinary_file_of_its_format(tmp_path: Path, compress: bool) -> None:
    store = Store(tmp_path, compress=compress)
    store.put(name_of(0), tensors(), FACTS)
    path = store.path(name_of(0))
    assert path == tmp_path / name_of(0)[:2] / f"{name_of(0)}.safetensors{'.zst' if compress else ''}"
    if compress:
        assert same(load(zstandard.decompress(path.read_bytes())), tensors())
    else:
        assert same(load_file(path), tensors())
        with safe_open(path, framework="pt") as file:
            checksum, _, facts = file.metadata()["tunerkit"].partition(" ")
        assert checksum.startswith("crc32=")
        assert json.loads(facts)["file"] == "clip ä.mp4"
    assert same(store.get(name_of(0)), tensors())
    assert read_facts(path) == {**FACTS, "frames": [0, 1, 2]}


@FORMS
def test_equal_entries_are_equal_bytes(tmp_path: Path, compress: bool) -> None:
    files = []
    for folder in ("a", "b"):
        store = Store(tmp_path / folder, compress=compress)
        store.put(name_of(0), dict(reversed(tensors().items())) if folder == "b" else tensors(), FACTS)
        files.append(store.path(name_of(0)).read_bytes())
    assert files[0] == files[1]


@FORMS
def test_compression_may_be_switched(tmp_path: Path, compress: bool) -> None:
    Store(tmp_path, compress=compress).put(name_of(0), tensors(), FACTS)
    other = Store(tmp_path, compress=not compress)
    assert name_of(0) in other
    assert other.listed(name_of(0))
    assert same(other.get(name_of(0)), tensors())
    other.put(name_of(0), tensors(), FACTS)
    assert same(Store(tmp_path, compress=compress).get(name_of(0)), tensors())


@FORMS
def test_no_flipped_bit_gives_a_wrong_tensor(tmp_path: Path, compress: bool) -> None:
    """Every bit of the plain form is covered. A few bits of a zstd frame mean nothing: then the tensors are right."""
    store = Store(tmp_path, compress=compress)
    store.put(name_of(0), tensors(), FACTS)
    path = store.path(name_of(0))
    whole = path.read_bytes()
    harmless = 0
    for bit in range(8 * len(whole)):
        if bit // 8 > 40 and bit % 7:  # the head fully, the rest in part
            continue
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        store.refresh()
        read = None
        with contextlib.suppress(CacheEntryError):
            read = store.get(name_of(0))
        assert (read is None) == (not path.exists()) == (not store.listed(name_of(0)))
        if read is not None:
            assert same(read, tensors()), bit
            harmless += 1
    assert harmless <= (1 if compress else 0)


@FORMS
def test_a_damaged_entry_that_cannot_be_removed_is_told_and_another_is_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    store = Store(tmp_path, compress=compress)
    store.put(name_of(0), tensors(), FACTS)
    path = store.path(name_of(0))
    path.write_bytes(path.read_bytes()[:-3])

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CacheEntryError, match=r"was damaged .* cannot be removed \(Permission denied\).*cache_dir"):
        store.get(name_of(0))
    assert path.exists()
    store.keep(name_of(0), tensors())
    assert name_of(0) in store
    assert same(store.get(name_of(0)), tensors())
    monkeypatch.setattr("tunerkit.cache.store.KEPT_BYTES", 1)  # no room for two
    store.keep(name_of(1), tensors())
    assert name_of(1) in store
    with pytest.raises(CacheEntryError):
        store.get(name_of(0))


@FORMS
def test_torn_entries_are_cleared_and_folders_are_no_entries(tmp_path: Path, compress: bool) -> None:
    store = Store(tmp_path, compress=compress)
    for number in range(3):
        store.put(name_of(number), {"a": torch.zeros(())}, {})  # the smallest there is
    whole, empty, cut = (store.path(name_of(number)) for number in range(3))
    assert whole.stat().st_size >= LEAST_BYTES
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: LEAST_BYTES - 1])
    store.path(name_of(3)).mkdir(parents=True)
    store = Store(tmp_path, compress=compress)
    assert not store.listed(name_of(3))
    assert name_of(3) not in store
    assert {entry.name for entry in store.entries()} == {name_of(0), name_of(1), name_of(2)}
    with pytest.raises(CacheEntryError, match=r"a folder stands where .* delete the folder"):
        store.get(name_of(3))
    store.clear_torn()
    assert [name_of(number) in store for number in range(4)] == [True, False, False, False]
    assert {entry.name for entry in store.entries()} == {name_of(0)}


@FORMS
def test_truncated_and_replaced_entries_are_found_and_removed(tmp_path: Path, compress: bool) -> None:
    store = Store(tmp_path, compress=compress)
    store.put(name_of(0), tensors(), FACTS)
    path = store.path(name_of(0))
    whole = path.read_bytes()
    for damaged in (*(whole[:end] for end in range(0, len(whole), 13)), whole + b"\0", whole + whole, b"\xff" * 40):
        path.write_bytes(damaged)
        store.refresh()
        with pytest.raises(CacheEntryError, match="damaged"):
            store.get(name_of(0))
        assert not path.exists()
        assert not store.listed(name_of(0))
    with pytest.raises(CacheEntryError, match="is gone; build_cache makes it anew"):
        store.get(name_of(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    store = Store(tmp_path)
    latents = torch.zeros(3, dtype=dtype)
    latents[1] = bad
    with pytest.raises(ValueError, match=r"latents of file = clip ä.mp4, bucket = 64x64@5 holds NaN") as error:
        store.put(name_of(0), {"latents": latents}, FACTS)
    assert isinstance(error.value, NonFiniteEntryError)
    assert isinstance(error.value, TunerkitError)
    assert not list(tmp_path.rglob("*"))


def test_what_others_add_or_delete_is_noticed(tmp_path: Path) -> None:
    mine, theirs = Store(tmp_path), Store(tmp_path, compress=True)
    assert name_of(0) not in mine
    theirs.put(name_of(0), tensors(), FACTS)
    assert not mine.listed(name_of(0))
    assert name_of(0) in mine
    assert mine.listed(name_of(0))
    theirs.put(name_of(1), tensors(), FACTS)
    mine.refresh()
    assert mine.listed(name_of(1))
    theirs.path(name_of(0)).unlink()
    Store(tmp_path).put(name_of(0), tensors(), FACTS)  # now in the other form
    assert same(mine.get(name_of(0)), tensors())
    mine.path(name_of(1)).unlink()
    with pytest.raises(CacheEntryError, match="is gone"):
        mine.get(name_of(1))
    assert name_of(1) not in mine


WRITER = """
import sys, torch
from pathlib import Path
from tunerkit.cache.store import Store
torch.set_num_threads(1)
folder, names = Path(sys.argv[1]), sys.argv[3:]
store = Store(folder, compress=sys.argv[2] == "zstd")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    for number, name in enumerate(names):
        store.put(name, {"latents": torch.full((64, 64), float(number))}, {"file": str(number)})
        assert store.get(name)["latents"][0, 0] == number
"""


@pytest.mark.parametrize("forms", [("plain", "plain"), ("plain", "zstd")], ids="-".join)
def test_two_processes_write_the_same_entries(tmp_path: Path, forms: tuple[str, str]) -> None:
    names = [name_of(number) for number in range(10)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), form, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for form in forms
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.communicate("go\n", timeout=60)[1] == ""
        assert process.returncode == 0
    store = Store(tmp_path)
    for number, name in enumerate(names):
        assert store.get(name)["latents"].eq(number).all()
    assert {entry.name for entry in store.entries()} == set(names)
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


def finished_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_abandoned_temporary_files_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = "0123456789ab"
    assert other != machine()
    start = f".{name_of(0)}.safetensors.tmp"

    def temporary(owner: str, process: int, age: float, suffix: str = "") -> Path:
        path = tmp_path / f".{name_of(0)}.safetensors{suffix}.tmp-{owner}-{process}-1"
        path.write_bytes(b"torn")
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    removed = [
        temporary(machine(), finished_pid(), 0),
        temporary(other, 1, 4000),
        temporary(other, 2, 4000, ".zst"),
        temporary(machine(), os.getpid(), 4000),
    ]
    kept = [
        temporary(machine(), os.getppid(), 0),
        temporary(machine(), os.getppid(), 4000, ".zst"),
        temporary(other, 3, 100),
        tmp_path / ".notes.tmp-1",
        tmp_path / f"{start}-{other}",
    ]
    for path in kept[3:]:
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    assert {entry.path for entry in store.leftovers()} == set(removed)
    store.clear_leftovers()
    assert not [path for path in removed if path.exists()]
    assert all(path.exists() for path in kept)
    Store(tmp_path / "missing").clear_leftovers()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put(name_of(0), tensors(), FACTS)
    before = store.path(name_of(0)).read_bytes()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunerkit.files.flush_file", full)
    for number in (0, 1):
        with pytest.raises(OSError, match="No space"):
            store.put(name_of(number), tensors(), {"file": "other"})
    assert store.path(name_of(0)).read_bytes() == before
    assert name_of(1) not in store
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [store.path(name_of(0))]


def test_only_our_own_files_are_entries(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(name_of(0), tensors(), FACTS)
    folder = store.path(name_of(0)).parent
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / f"{name_of(0)}.safetensors.bak").write_bytes(b"x")
    wrong = next(name_of(n) for n in range(1, 9) if name_of(n)[:2] != folder.name)
    (folder / f"{wrong}.safetensors").write_bytes(b"x")
    (tmp_path / f"{wrong}.safetensors").write_bytes(b"x")
    (folder / f"{folder.name}{'0' * 62}.safetensors").symlink_to(tmp_path / "nothing")
    (folder / f"{folder.name}{'1' * 62}.safetensors").mkdir()
    assert [entry.path for entry in store.entries()] == [store.path(name_of(0))]


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"null"])
@pytest.mark.parametrize("suffix", [".safetensors", ".safetensors.zst"])
def test_no_facts_of_a_file_that_is_none_of_ours(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert read_facts(path) == {}
    assert read_facts(tmp_path / f"missing{suffix}") == {}


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    names = [name_of(number) for number in range(20_000)]
    for name in names:
        folder = tmp_path / name[:2]
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.safetensors").touch()
    return names


def test_present_entries_are_looked_up_without_the_disk(
    tmp_path: Path, many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    assert many[0] in store
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("the disk was asked"))
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("the folder was listed again"))
    started = time.perf_counter()
    assert all(name in store for name in many)
    assert time.perf_counter() - started < 0.3  # a fifth of the entries that should take so long
