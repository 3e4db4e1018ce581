"""The table, the CSV and the page of a sweep, from folders as runs leave them."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from sweep_notebooks import pretend_notebook

import tunerkit as tk
from tunerkit import batch
from tunerkit.batch.folders import SweepFolder, one_line
from tunerkit.batch.plan import plan_sweep
from tunerkit.batch.run_one import lighten
from tunerkit.validation.video_files import write_mp4


def leave(output: Path, losses: list[float], evaluations: list[float], *, video: bool = True) -> None:
    """What a training leaves."""
    output.mkdir(parents=True)
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    (output / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 9, "lo')
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(evaluations)]
    (output / "evaluation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    status = {"state": "done", "step": len(losses), "total_steps": 9, "memory": {"peak": 3 * 2**30}}
    (output / "status.json").write_text(json.dumps(status))
    if video:
        frames = np.random.default_rng(0).integers(0, 255, (17, 96, 128, 3), np.uint8)
        for step in ("step-0", "step-2", "step-10"):
            for name in ("fox-128x96-1", "fox-128x96-1-compared"):
                write_mp4(output / "validation" / step / f"{name}.mp4", frames, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four runs: two done, one failed, one not begun."""
    place = tmp_path_factory.mktemp("sweep #1")
    plan = plan_sweep(pretend_notebook(place), {"learning_rate": [1e-3, 1e-2], "behaviour": ["a <b> & 'c'", "train"]})
    runs = SweepFolder(place).prepare(plan, {})
    leave(runs[0].output, [0.5, 0.4], [0.9, 0.3, 0.5])
    leave(runs[1].output, [0.5, 0.1], [0.9, 0.4], video=False)
    runs[0].write_state(state="done", seconds=65.0, error="")
    runs[1].write_state(state="done", seconds=5.0, error="")
    runs[2].write_state(state="failed", seconds=1.0, error="cell 3: ValueError: <x>", peak_ram=2**29)
    for run in runs[:3]:
        (run.path / "notebook.ipynb").write_text("{}")
        (run.path / "log.txt").write_text("words")
    return place


def test_rows(folder: Path) -> None:
    result = batch.read_sweep(folder)
    assert [row.state for row in result] == ["done", "done", "failed", "queued"]
    first, second, failed, _ = result
    assert (first.loss, first.evaluation, first.evaluation_step, first.step) == (0.4, 0.3, 1, 2)
    assert first.peak_memory == 3 * 2**30
    assert failed.peak_memory == 2**29
    assert first.video == first.output / "validation" / "step-10" / "fox-128x96-1.mp4"
    assert second.video is None
    assert result.best is first  # the evaluation counts, not the training loss
    assert str(first).startswith("run 1, learning_rate=0.001, behaviour=a <b> & 'c': done, loss 0.4, evaluation 0.3")
    assert "1 min 05 s" in str(first)


def test_table_and_csv_say_the_same(folder: Path, tmp_path: Path) -> None:
    result = batch.read_sweep(folder)
    with result.save_csv(tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    frame = result.to_dataframe()
    assert list(frame.columns) == list(rows[0])
    assert list(frame["learning_rate"]) == [float(row["learning_rate"]) for row in rows] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert rows[0]["behaviour"] == "a <b> & 'c'"
    assert rows[0]["peak_memory_gib"] == "3.0"
    assert (folder / rows[0]["video"]).is_file()
    with pytest.raises(tk.TunerkitError, match="cannot be written"):
        result.save_csv(tmp_path / "table.csv" / "below.csv")


def videos(page: str) -> list[int]:
    """Frames of each video in a page."""
    counts = []
    for source in re.findall(r"<video src='data:video/mp4;base64,([^']+)'", page):
        with av.open(io.BytesIO(base64.b64decode(source)), "r") as container:
            assert container.streams.video[0].codec_context.name == "h264"
            counts.append(sum(1 for _ in container.decode(video=0)))
    return counts


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    result = batch.read_sweep(folder)
    page = result.report(folder / "report.html").read_text()
    assert videos(page) == [17]
    assert "http" not in page
    assert page.count("<tr") == 5
    assert "a &lt;b&gt; &amp; " in page
    assert "a <b>" not in page
    assert "cell 3: ValueError: &lt;x&gt;" in page
    links = [html.unescape(link).replace("%23", "#") for link in re.findall(r"href='([^']+)'", page)]
    assert len(links) == 7
    assert all((folder / link).is_file() for link in links), links
    assert page.count("<polyline") == 2
    assert "prefers-color-scheme: dark" in page
    assert "4 runs: 2 done, 1 failed, 1 queued. Lowest evaluation loss 0.3 with learning_rate=0.001" in page


def test_previews_are_made_once(folder: Path) -> None:
    result = batch.read_sweep(folder)
    result.report(folder / "report.html")
    preview = folder / "001-learning_rate-0.001_behaviour-a-b-c" / "preview.mp4"
    made = preview.stat().st_mtime_ns
    result.report(folder / "report.html")
    assert preview.stat().st_mtime_ns == made


def test_the_table_in_a_notebook_is_as_small_as_it_must_be(folder: Path) -> None:
    result = batch.read_sweep(folder)
    assert videos(result._repr_html_()) == []
    page = result.to_html(60_000)
    assert videos(page) == [17]
    assert len(page) < 66_000
    assert "<script" not in page


def test_executed_notebooks_lose_what_only_a_live_kernel_could_show(tmp_path: Path) -> None:
    path = tmp_path / "notebook.ipynb"
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": ["VBox()"]}
    cells = [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [{"data": data}, {"name": "stdout"}]}]
    path.write_text(json.dumps({"metadata": {"widgets": {"state": "x" * 10**6}, "kernelspec": 1}, "cells": cells}))
    lighten(path)
    left = json.loads(path.read_text())
    assert left["metadata"] == {"kernelspec": 1}
    assert left["cells"][1]["outputs"][0]["data"] == {"text/plain": ["VBox()"]}
    lighten(tmp_path / "none.ipynb")
    assert not (tmp_path / "none.ipynb").exists()


def test_messages_become_one_line() -> None:
    assert one_line("\x1b[31mError\x1b[0m:\n  - a\n") == "Error: - a"
    assert len(one_line("word " * 200)) == 300
