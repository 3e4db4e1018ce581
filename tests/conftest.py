"""What every test shares: no network, one thread, and one demo project and base model for the whole run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import atexit
import functools
import gc
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from config_documents import lay_out_quickstart

import tunerkit as tk

SHARED = ("browser", "kandinsky5_projects", "ltx2_projects")
"""Fixtures that take long to make, or are in each other's way: one browser at a time, so that its videos play."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file stay in one process, and so do all that need one of the `SHARED` fixtures.

    Those come first, then groups with slow tests: one that begins last would let the other processes wait for it.
    """
    groups = {item: _group_of(item) for item in items}
    slow = {groups[item] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (groups[item] not in SHARED, groups[item] not in slow))
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


def _group_of(item: pytest.Item) -> str:
    names = getattr(item, "fixturenames", ())
    return next((fixture for fixture in SHARED if fixture in names), item.path.stem)


if "PYTEST_XDIST_WORKER" not in os.environ:  # plans that are remembered: of this run alone, for all its processes
    os.environ["TUNERKIT_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["TUNERKIT_CACHE"], ignore_errors=True)

_known_modules = 0


def pytest_runtest_setup() -> None:
    """Once the model libraries are loaded, leave them out of garbage collection.

    Memory is collected after every phase of a run, and looking through the millions of objects that belong to
    modules takes a third of a second each time.
    """
    global _known_modules
    if "torch" in sys.modules and len(sys.modules) > _known_modules + 200:
        _known_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def pristine_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo project with its cache filled; tests copy it and never write into it."""
    import torch

    torch.set_num_threads(1)
    config_path = tk.demo.create(tmp_path_factory.mktemp("demo") / "project", family="sanavideo")
    tk.build_cache(tk.load_config(config_path), progress=False)
    return config_path.parent


@pytest.fixture(scope="session")
def ltx2_projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """config.json of LTX-2 demo projects by flavour, their caches filled; tests write to folders of their own."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ltx2")
    configs: dict[str, Path] = {}
    for flavour in ("dev", "2.3-dev"):
        project = folder / flavour
        if configs:  # the clips are the same
            shutil.copytree(configs["dev"].parent / "clips", project / "clips")
            shutil.copyfile(configs["dev"].parent / "demo.json", project / "demo.json")
        configs[flavour] = tk.demo.create(project, family="ltxvideo2", clips="generated", model_flavour=flavour)
        assert not tk.build_cache(tk.load_config(configs[flavour]), progress=False).failures
    return configs


@pytest.fixture(scope="session")
def kandinsky5_projects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Flavour -> config.json of a Kandinsky 5 demo project, its cache filled; tests write to folders of their own."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("kandinsky5")

    @functools.cache
    def config_of(flavour: str) -> Path:
        project, first = folder / flavour, folder / "t2v-lite-sft-5s"
        if first.exists():  # clips, and all weights that a cache depends on, are the same
            for name in ("clips", "cache"):
                shutil.copytree(first / name, project / name)
            shutil.copyfile(first / "demo.json", project / "demo.json")
        path = tk.demo.create(project, family="kandinsky5-video", clips="generated", model_flavour=flavour)
        assert not tk.build_cache(tk.load_config(path), progress=False).failures
        return path

    return config_of


@pytest.fixture
def project(pristine_project: Path, tmp_path: Path) -> Path:
    """A copy of the demo project (checkpoint, clips, filled cache) that the test may change."""
    folder = tmp_path / "project"
    shutil.copytree(pristine_project, folder)
    return folder


@pytest.fixture
def make_config(project: Path) -> Callable[..., tk.TrainConfig]:
    """Settings of the demo project with a few changed; validation off unless asked for."""

    def make(**changes: object) -> tk.TrainConfig:
        return tk.load_config(project / "config.json", **{"validation_disable": True, **changes})

    return make


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Sana quickstart, read from an unrelated current folder; the project's folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return lay_out_quickstart(tmp_path / "project")
