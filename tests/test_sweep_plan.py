"""What a sweep may ask for, and what is said before anything runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from sweep_notebooks import pretend_notebook

import tunerkit as tk
from tunerkit import batch
from tunerkit.batch.gpus import chosen_gpus
from tunerkit.cli_sweep import add_sweep, read_request, run_sweep


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return pretend_notebook(tmp_path)


def wrong(notebook: Path, grid: Any = None, **more: Any) -> dict[str, str]:
    """Key -> message and fix of everything that is refused."""
    with pytest.raises(tk.ConfigError) as raised:
        batch.plan_sweep(notebook, grid, **more)
    return {problem.key: f"{problem.message}: {problem.fix}" for problem in raised.value.problems}


def test_parameters_are_read_from_the_notebook(notebook: Path) -> None:
    found = batch.notebook_parameters(notebook)
    assert list(found) == [
        "learning_rate",
        "lora_rank",
        "model_type",
        "max_train_steps",
        "behaviour",
        "output_dir",
    ]
    assert found["lora_rank"] == batch.Parameter("lora_rank", 0, "int")
    assert found["model_type"].choices == ("", "lora", "full")


def test_a_grid_is_every_combination(notebook: Path) -> None:
    plan = batch.plan_sweep(
        notebook, {"learning_rate": [1e-4, 1], "lora_rank": (4, 8, 8.0)}, base={"behaviour": "train"}
    )
    settings = [(run.settings["learning_rate"], run.settings["lora_rank"]) for run in plan.runs]
    assert settings == [(1e-4, 4), (1e-4, 8), (1.0, 4), (1.0, 8)]
    assert plan.runs[0].parameters == {"behaviour": "train", "learning_rate": 1e-4, "lora_rank": 4}
    assert plan.runs[0].label == "learning_rate-0.0001_lora_rank-4"


def test_runs_one_by_one_count_more_than_the_base(notebook: Path) -> None:
    plan = batch.plan_sweep(notebook, runs=[{"lora_rank": 4}, {"behaviour": "a cat / a dog"}], base={"lora_rank": 2})
    assert [dict(run.parameters) for run in plan.runs] == [
        {"lora_rank": 4},
        {"lora_rank": 2, "behaviour": "a cat / a dog"},
    ]
    assert plan.runs[1].label == "behaviour-a-cat-a-dog"


def test_everything_wrong_is_said_at_once(notebook: Path) -> None:
    problems = wrong(
        notebook,
        {
            "learning_rat": [1],
            "learning_rate": ["1e-4", float("nan"), True],
            "lora_rank": [0, -3],
            "model_type": ["lor"],
            "max_train_steps": 5,
            "behaviour": [],
        },
        base={"colour": "red", "lora_rank": 2.5},
    )
    assert problems == {
        "base.colour": "pretend.ipynb has no such parameter: use one of learning_rate, lora_rank, model_type, "
        "max_train_steps, behaviour, output_dir",
        "base.lora_rank": "is not what the notebook takes: write a whole number",
        "grid.learning_rat": "pretend.ipynb has no such parameter: did you mean learning_rate?",
        "grid.learning_rate": "is not what the notebook takes: write a number",
        "grid.lora_rank": "is not a whole number from 1 to 1024: write a whole number from 1 to 1024, for example 16",
        "grid.model_type": "is not one of its choices: did you mean lora? Choices: lora, full",
        "grid.max_train_steps": "is not a list of values: write a list with at least one value, also for a single "
        "one: [value]",
        "grid.behaviour": "is not a list of values: write a list with at least one value, also for a single one: "
        "[value]",
    }


def test_what_the_notebook_itself_has_is_never_wrong(notebook: Path) -> None:
    """0 and the empty text mean "leave it" in the guided notebooks, though no setting takes them."""
    plan = batch.plan_sweep(notebook, {"lora_rank": [0], "model_type": [""]})
    assert len(plan.runs) == 1


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "grid"),
        ({"grid": {}}, "grid"),
        ({"grid": {"lora_rank": [4]}, "runs": [{"lora_rank": 4}]}, "grid"),
        ({"runs": {"lora_rank": 4}}, "runs"),
        ({"runs": [4]}, "runs[0]"),
        ({"grid": {"lora_rank": [4, 8]}, "base": {"output_dir": "here"}}, "output_dir"),
    ],
)
def test_wrong_requests(notebook: Path, given: dict[str, Any], key: str) -> None:
    assert list(wrong(notebook, **given)) == [key]


def test_wrong_notebooks(tmp_path: Path) -> None:
    with pytest.raises(tk.TunerkitError, match="is not a file"):
        batch.plan_sweep(tmp_path / "none.ipynb", {})
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    with pytest.raises(tk.TunerkitError, match="cannot be read"):
        batch.plan_sweep(broken, {})
    nbformat.write(nbformat.v4.new_notebook(), broken)
    with pytest.raises(tk.TunerkitError, match="tag 'parameters'"):
        batch.plan_sweep(broken, {})


def test_wrong_calls_leave_no_files(notebook: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(tk.ConfigError):
        batch.sweep(notebook, {"lora_rank": [-1]}, output_dir=folder)
    with pytest.raises(tk.TunerkitError, match="parallel = 0"):
        batch.sweep(notebook, {"lora_rank": [1]}, output_dir=folder, parallel=0)
    with pytest.raises(tk.TunerkitError, match="holds no sweep"):
        batch.read_sweep(folder)
    with pytest.raises(tk.TunerkitError, match="no sweep works"):
        batch.stop_sweep(folder)
    assert not folder.exists()
    folder.write_text("")
    with pytest.raises(tk.TunerkitError, match="cannot be written"):
        batch.sweep(notebook, {"lora_rank": [1]}, output_dir=folder)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [("", []), ("-1", []), ("1", ["1"]), ("1,0", ["1", "0"]), ("0,-1,1", ["0"]), ("GPU-a", ["GPU-a"]), ("7", ["7"])],
)
def test_chosen_gpus(chosen: str, names: list[str]) -> None:
    found = chosen_gpus(chosen, ["GPU-a", "GPU-b"])
    assert [gpu.name for gpu in found] == names
    by_number = {"0": "GPU-a", "1": "GPU-b"}
    assert [gpu.key for gpu in found] == [by_number.get(name, name) for name in names]


# The command line ----------------------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_sweep(lambda name, text: commands.add_parser(name, help=text))
    return parser.parse_args(["sweep", *words])


def test_the_command_says_what_is_wrong_with_its_file(notebook: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    with pytest.raises(tk.TunerkitError, match="cannot be read"):
        read_request(file)
    for content, message in (("[1]", "no object"), ('{"gird": {}}', "did you mean grid"), ("{", "not valid JSON")):
        file.write_text(content)
        with pytest.raises(tk.TunerkitError, match=message):
            read_request(file)
    file.write_text(json.dumps({"grid": {"lora_rank": [4]}}))
    with pytest.raises(tk.TunerkitError, match="--output-dir"):
        run_sweep(arguments(str(notebook), str(file)))
    file.write_text(json.dumps({"grid": {"lora_rank": [-4]}, "output_dir": str(tmp_path / "out")}))
    with pytest.raises(tk.ConfigError, match=r"grid\.lora_rank"):
        run_sweep(arguments(str(notebook), str(file), "--parallel", "2"))
