"""Datasets repositories: each layout of captions, a real download from a small hub, and every way it can fail."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from tunerkit.config.dataset_document import DatasetConfig
from tunerkit.config.settings import TrainConfig
from tunerkit.data.hub import COMPLETE, local_folder, possible_folders
from tunerkit.errors import DatasetError

NAME = "someone/clips"


def settings_of(tmp_path: Path, name: str | Path | None = NAME, **entry: Any) -> tuple[DatasetConfig, TrainConfig]:
    entry = {"id": "clips", "type": "huggingface", "dataset_name": str(name or "none-yet/none"), **entry}
    config = TrainConfig(output_dir=tmp_path / "out", datasets=[entry])
    return config.datasets[0], config


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder but hidden ones."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_text("utf-8") for name, path in names.items() if not name.startswith(".")}


# Layouts of a folder of this machine -----------------------------------------------------------------------------

LAYOUTS = {
    "jsonl": {
        "metadata.jsonl": '{"file_name": "v/a.mp4", "text": "a  cat\\nruns"}\n\n{"file_name": "b.mp4", "text": "dog"}\n'
    },
    "crlf jsonl": {
        "metadata.jsonl": '\ufeff{"file_name": "v/a.mp4", "prompt": "a cat runs"}\r\n'
        '{"file_name": "b.mp4", "prompt": "dog"}\r\n'
    },
    "csv": {"metadata.csv": 'file_name,n,caption\nv/a.mp4,1,"a cat\nruns"\nb.mp4,2,dog\n'},
    "json": {"dataset.json": '[{"video": "v/a.mp4", "caption": "a cat runs"}, {"video": "b.mp4", "caption": "dog"}]'},
    "lines": {"videos.txt": "v/a.mp4\nb.mp4\n", "prompt.txt": "a cat runs\ndog\n\n"},
    "lines 2": {"video.txt": "b.mp4\r\nv/a.mp4", "captions.txt": "dog\r\na cat runs\r\n"},
    "beside the clips": {
        "v/metadata.csv": "file_name,text\na.mp4,a cat runs\n",
        "metadata.csv": "file_name,text\nb.mp4,dog\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_of_each_layout(tmp_path: Path, layout: str) -> None:
    repository = fill(tmp_path / "repo", {"v/a.mp4": "A", "b.mp4": "B", **LAYOUTS[layout]})
    before = contents(repository)
    dataset, config = settings_of(tmp_path, repository)
    folder = local_folder(dataset, config)
    assert folder.is_relative_to(config.cache_path / "datasets")
    assert contents(folder) == {"v/a.mp4": "A", "v/a.txt": "a cat runs", "b.mp4": "B", "b.txt": "dog"}
    assert (folder / "b.mp4").samefile(repository / "b.mp4")  # a link, no second copy of the clips
    assert contents(repository) == before
    assert folder in possible_folders(dataset, config)


def test_several_captions_of_a_clip_are_lines(tmp_path: Path) -> None:
    repository = fill(tmp_path / "repo", {"a.mp4": "A", "metadata.jsonl": '{"file_name":"a.mp4","captions":["x","y"]}'})
    assert contents(local_folder(*settings_of(tmp_path, repository)))["a.txt"] == "x\ny"


def test_pairs_are_used_where_they_lie(tmp_path: Path) -> None:
    files = {"a.mp4": "A", "a.txt": "cat", "metadata.jsonl": '{"file_name": "a.mp4", "text": "other"}'}
    repository = fill(tmp_path / "repo", files)
    dataset, config = settings_of(tmp_path, repository)
    assert local_folder(dataset, config) == repository
    assert repository in possible_folders(dataset, config)
    assert not config.cache_path.exists()


def test_a_caption_file_counts_more_than_a_list(tmp_path: Path) -> None:
    repository = fill(tmp_path / "repo", {"a.mp4": "A", "a.txt": "own", "b.mp4": "B", **LAYOUTS["lines"]})
    fill(repository, {"v/a.mp4": "VA"})
    copy = contents(local_folder(*settings_of(tmp_path, repository)))
    assert (copy["a.txt"], copy["b.txt"], copy["v/a.txt"]) == ("own", "dog", "a cat runs")


def test_the_copy_follows_the_repository(tmp_path: Path) -> None:
    repository = fill(tmp_path / "repo", {"v/a.mp4": "A", "b.mp4": "B", **LAYOUTS["lines"]})
    dataset, config = settings_of(tmp_path, repository)
    local_folder(dataset, config)
    (repository / "v" / "a.mp4").unlink()
    (repository / "b.mp4").unlink()
    fill(repository, {"b.mp4": "B, longer", "videos.txt": "b.mp4", "prompt.txt": "hound"})
    assert contents(local_folder(dataset, config)) == {"b.mp4": "B, longer", "b.txt": "hound"}


def test_captions_that_are_not_read_are_not_written(tmp_path: Path) -> None:
    repository = fill(tmp_path / "repo", {"v/a.mp4": "A", "b.mp4": "B", **LAYOUTS["lines"]})
    assert local_folder(*settings_of(tmp_path, repository, caption_strategy="filename")) == repository


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"videos.txt": "a.mp4\nb.mp4", "prompt.txt": "one"}, ["videos.txt has 2 lines", "prompt.txt has 1"]),
        ({"metadata.jsonl": '{"file_name": "a.mp4", "text": "x"}\n{oops'}, ["metadata.jsonl", "line 2"]),
        ({"dataset.json": "[\n{"}, ["dataset.json", "line 2"]),
        ({"data/train-0.parquet": "PAR1"}, ["data/train-0.parquet", "export them as files"]),
        ({"README.md": "hello"}, ["no video or image file"]),
    ],
)
def test_repositories_that_cannot_be_used(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    media = {} if words[-1].startswith(("export", "no video")) else {"a.mp4": "A"}
    with pytest.raises(DatasetError) as wrong:
        local_folder(*settings_of(tmp_path, fill(tmp_path / "repo", {**media, **files})))
    for word in [*words, "Fix"]:
        assert word in str(wrong.value)


def test_lists_that_fit_nothing_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = '{"file_name": "gone.mp4", "text": "x"}\n{"file_name": "../../a.mp4", "text": "y"}'
    fill(tmp_path / "repo", {"a.mp4": "A", "metadata.jsonl": table, "dataset.csv": "id,words\n1,x\n"})
    local_folder(*settings_of(tmp_path, tmp_path / "repo"))
    assert "2 files that the captions are for are not there, the first is gone.mp4" in caplog.text
    assert "dataset.csv is not used: it has no column for the files (columns: id, words" in caplog.text


@pytest.mark.parametrize(("name", "words"), [(None, "dataset_name is not set"), ("no folder/at all/here", "neither")])
def test_names_that_mean_nothing(tmp_path: Path, name: str | None, words: str) -> None:
    dataset, config = settings_of(tmp_path)
    with pytest.raises(DatasetError, match=f"(?s){words}.*Fix"):
        local_folder(dataset.model_copy(update={"dataset_name": name}), config)


# A small hub -----------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class SmallHub(BaseHTTPRequestHandler):
    """Answers what a download of one datasets repository asks for."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        type(self).asked.append(path)
        if path.startswith(f"/api/datasets/{NAME}/revision/"):
            self._send(json.dumps({"id": NAME, "sha": COMMIT}).encode())
        elif path == f"/api/datasets/{NAME}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in self.files.items()
            ]
            self._send(json.dumps(tree).encode())
        elif path.startswith(f"/datasets/{NAME}/resolve/{COMMIT}/"):
            data = self.files[path.rpartition(f"{COMMIT}/")[2]]
            self._send(data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests print no log of requests."""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SmallHub]]:
    """A hub with one repository, which the client of this process uses."""

    class Hub(SmallHub):
        files = {
            "v/a.mp4": b"A",
            "B.MP4": b"B",
            "metadata.csv": b"file_name,text\nv/a.mp4,a cat\nB.MP4,dog\n",
            "README.md": b"not needed",
            "model.bin": b"not needed",
        }
        asked: list[str] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    huggingface_hub.close_session()
    yield Hub
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_a_download_happens_once(tmp_path: Path, hub: type[SmallHub], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = settings_of(tmp_path)
    folder = local_folder(dataset, config)
    assert folder == config.cache_path / "datasets" / "someone--clips"
    assert possible_folders(dataset, config) == (folder,)
    captions = {"v/a.txt": "a cat", "B.txt": "dog"}
    assert contents(folder) == {
        "v/a.mp4": "A", "B.MP4": "B", "metadata.csv": "file_name,text\nv/a.mp4,a cat\nB.MP4,dog\n", **captions
    }  # fmt: skip

    asked = len(hub.asked)
    assert asked > 0
    (folder / "v" / "a.txt").write_text("a better caption")
    (folder / "B.MP4").unlink()  # taken out on purpose
    assert local_folder(dataset, config) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder(dataset, config) == folder
    assert len(hub.asked) == asked
    assert (folder / "v" / "a.txt").read_text() == "a better caption"
    assert not (folder / "B.MP4").exists()


def test_captions_are_written_when_they_come_to_be_read(tmp_path: Path, hub: type[SmallHub]) -> None:
    folder = local_folder(*settings_of(tmp_path, caption_strategy="filename"))
    assert not list(folder.rglob("*.txt"))
    asked = len(hub.asked)
    assert (local_folder(*settings_of(tmp_path)) / "B.txt").read_text() == "dog"
    assert len(hub.asked) == asked


@pytest.mark.usefixtures("hub")
def test_an_interrupted_download_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = settings_of(tmp_path, instance_data_dir=tmp_path / "here")
    folder = local_folder(dataset, config)
    assert folder == tmp_path / "here"
    (folder / COMPLETE).unlink()
    (folder / "v" / "a.mp4").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE is set, and the repository is not downloaded completely"):
        local_folder(dataset, config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (local_folder(dataset, config) / "v" / "a.mp4").read_text() == "A"
    assert (folder / COMPLETE).is_file()


@pytest.mark.usefixtures("hub")
def test_a_folder_of_another_repository_is_left_alone(tmp_path: Path) -> None:
    local_folder(*settings_of(tmp_path, instance_data_dir=tmp_path / "here"))
    with pytest.raises(DatasetError, match="holds someone/clips already"):
        local_folder(*settings_of(tmp_path, instance_data_dir=tmp_path / "here", revision="v2"))


@pytest.mark.usefixtures("hub")
def test_revisions_have_folders_of_their_own(tmp_path: Path) -> None:
    folder = local_folder(*settings_of(tmp_path, revision="refs/pr/1"))
    assert folder.name == "someone--clips@refs--pr--1"


@pytest.mark.parametrize(
    ("name", "words"), [("data/train.parquet", ["data/train.parquet", "export"]), ("model.bin", ["no video or image"])]
)
def test_a_download_without_media(tmp_path: Path, hub: type[SmallHub], name: str, words: list[str]) -> None:
    hub.files = {name: b"x"}
    dataset, config = settings_of(tmp_path)
    with pytest.raises(DatasetError) as wrong:
        local_folder(dataset, config)
    assert all(word in str(wrong.value) for word in [*words, NAME, "Fix"])
    assert not list((tmp_path / "out").rglob(COMPLETE))


@pytest.mark.usefixtures("hub")
def test_a_repository_that_the_hub_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no such datasets repository.*HF_TOKEN"):
        local_folder(*settings_of(tmp_path, "someone/else"))


def test_a_folder_filled_by_hand_serves_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "here", {"a.mp4": "A", "a.txt": "cat"})
    dataset, config = settings_of(tmp_path, instance_data_dir=tmp_path / "here")
    assert local_folder(dataset, config) == tmp_path / "here"
    assert "the hub cannot be reached" in caplog.text
    assert not (tmp_path / "here" / COMPLETE).exists()  # nobody knows whether it is complete


def test_offline_and_nothing_there(tmp_path: Path) -> None:
    dataset, config = settings_of(tmp_path)
    with pytest.raises(DatasetError, match=r"HF_HUB_OFFLINE is set, and the repository is not downloaded to.*Fix") as e:
        local_folder(dataset, config)
    assert e.value.__suppress_context__


# Failures of the client ------------------------------------------------------------------------------------------


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", f"https://huggingface.co/api/datasets/{NAME}")
    return kind(f"{status} Client Error.\n\nRequest ID: x", response=httpx2.Response(status, request=request))


def wrapped_full_disk() -> Exception:
    error = errors.XetDownloadError("write failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(errors.GatedRepoError, 403), ["gated", "ask for access at", NAME, "HF_TOKEN"]),
        (answer(errors.RepositoryNotFoundError, 401), ["no such datasets repository", "private", "HF_TOKEN"]),
        (answer(errors.RevisionNotFoundError, 404), ["no revision 'v9'", "set revision"]),
        (answer(errors.HfHubHTTPError, 401), ["refuses access (status 401)", "hf auth login"]),
        (answer(errors.HfHubHTTPError, 503), ["status 503", "later"]),
        (errors.HFValidationError("bad"), ["owner/name"]),
        (errors.LocalEntryNotFoundError("cannot be reached"), ["cannot be reached", "HF_ENDPOINT"]),
        (httpx2.ConnectError("refused"), ["ConnectError: refused", "run again"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["is full", "instance_data_dir or cache_dir"]),
        (wrapped_full_disk(), ["is full", "free disk space"]),
        (PermissionError(errno.EACCES, "Permission denied"), ["no permission to write"]),
        (RuntimeError("odd\nmore lines"), ["RuntimeError: odd"]),
    ],
)
def test_each_failure_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    dataset, config = settings_of(tmp_path, revision="v9")
    with pytest.raises(DatasetError) as failed:
        local_folder(dataset, config)
    message = str(failed.value)
    for word in [*words, "dataset 'clips': dataset_name = 'someone/clips'", "Fix: "]:
        assert word in message
    assert "\n" not in message
    assert failed.value.__suppress_context__
    assert not list((tmp_path / "out").rglob(COMPLETE))
