"""The workbench's widgets in a real JupyterLab and a real browser: clicked, typed into, and compared with the files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Dashboard, Gallery, LabNotebook, LabServer, Widget, wait_until
from browser.fixtures import PICTURES
from browser.workbench import (
    FOLLOW,
    FPS,
    FRAMES,
    PROMPTS,
    SETTINGS,
    SIZE,
    STEPS,
    opening,
    write_dataset,
    write_notebook,
    write_rounds,
    write_sweep,
)
from sweep_notebooks import pretend_notebook

import tunerkit as tk

pytest_plugins = ["browser.fixtures"]
pytestmark = pytest.mark.slow

SECONDS = 120
"""For a start of the training, on a busy machine."""
UPDATES = 20_000
RATE = f"""\
import time

progress = tw.CacheProgress()
for number in range({UPDATES} + 1):
    progress("clips", number, {UPDATES})
    time.sleep(0.0001)
"""
GALLERY, CLIPS, CACHE, NEXT, SWEEP, FORM = 1, 2, 3, 4, 5, 6
"""Numbers of the cells of `tools`."""
PLAYERS = len(PROMPTS) * len(STEPS)
TOGETHER = 0.25
"""Seconds that players may lie apart while they play on a busy machine."""


@pytest.fixture(scope="module")
def tools(browser: Browser, lab: LabServer, pristine_project: Path) -> Iterator[LabNotebook]:
    """A notebook with the widgets that need no training, after Run All."""
    clips = write_dataset(pristine_project, lab.root / "dataset")
    rounds = write_rounds(lab.root / "rounds")
    sweep = write_sweep(lab.root / "sweep", pretend_notebook(lab.root))
    project = shutil.copytree(pristine_project, lab.root / "form")
    write_notebook(
        lab.root / "tools.ipynb",
        "import tunerkit as tk\nimport tunerkit_widgets as tw",
        f"tw.ValidationGallery({str(rounds)!r})",
        f"tw.DatasetBrowser(tk.load_config({str(clips)!r}))",
        RATE,
        'print("the next cell")',
        f"tw.SweepTable({str(sweep)!r})",
        f"form = tw.SetupForm({str(project)!r})\nform",
    )
    with browser.open(lab, "tools.ipynb") as notebook:
        notebook.page.set_viewport_size({"width": 1280, "height": 1800})  # videos out of sight are not loaded
        notebook.run_all(SECONDS)
        assert notebook.failed_cells() == {}
        yield notebook


def shoot(notebook: LabNotebook, cell: int, name: str) -> None:
    """Take pictures of a cell, light and dark, where they are asked for."""
    if folder := os.environ.get(PICTURES):
        for theme in ("light", "dark"):
            notebook.picture(Path(folder).absolute() / f"w2_{name}_{theme}.png", cell=cell, dark=theme == "dark")


def check_clean(notebook: LabNotebook) -> None:
    assert notebook.errors == []
    assert notebook.outside == []


def test_a_training_from_its_start_to_its_export(browser: Browser, lab: LabServer, pristine_project: Path) -> None:
    """Buttons, a page that is loaded again, a new kernel, the end, and what can be done with what is left."""
    project = shutil.copytree(pristine_project, lab.root / "project")
    output = project / "output"
    cells = [opening(project, **SETTINGS), FOLLOW, "tw.CheckpointBrowser(run)", "tw.RunList(config.output_dir)"]
    file = write_notebook(lab.root / "training.ipynb", *cells)
    with browser.open(lab, file.name) as notebook:
        notebook.start_all()
        wait_until(lambda: (output / "status.json").is_file(), SECONDS)
        dashboard = Dashboard(notebook, 1, tk.attach(output))
        dashboard.wait_state("training", SECONDS)
        process = dashboard.run.status.pid
        dashboard.pause_and_resume()
        dashboard.click("Save now")
        wait_until(lambda: len(dashboard.run.checkpoints()) == 1)
        dashboard.click("Validate now")
        wait_until(lambda: len(list(output.glob("validation/step-[1-9]*/*.mp4"))) == 2)
        dashboard.box.locator("video").nth(1).wait_for()
        check_videos(notebook)
        shoot(notebook, 1, "dashboard")
        assert dashboard.unnamed() == []

        notebook.save()
        reload_until_live(notebook, dashboard)
        dashboard.pause_and_resume()

        notebook.restart_kernel()
        before = dashboard.steps()
        notebook.start_all()
        dashboard.wait_live()
        assert dashboard.run.status.pid == process
        assert dashboard.steps() > before
        dashboard.stop()
        notebook.wait_done(SECONDS)
        assert notebook.failed_cells() == {}
        check_checkpoints(Widget(notebook, 2), output)
        runs = Widget(notebook, 3)
        runs.role("button", "Attach").click()
        assert str(output) in runs.role("textbox", "Code").input_value()
        shoot(notebook, 3, "run_list")
        assert runs.unnamed() == []

        notebook.save()
        notebook.reload()
        assert "stopped" in notebook.text()
        dashboard.wait_state("stopped")
        check_videos(notebook)
        check_clean(notebook)


def reload_until_live(notebook: LabNotebook, dashboard: Dashboard) -> None:
    """Load the page while the kernel works, at most twice: JupyterLab asks for the kernel's widgets once while it
    loads, and on a machine that is busy enough it gives up before the answer comes."""
    from playwright.sync_api import TimeoutError as NotThere

    notebook.reload(busy=True)
    try:
        dashboard.wait_live()
    except NotThere:
        notebook.reload(busy=True)
        dashboard.wait_live()


def check_videos(notebook: LabNotebook) -> None:
    """The base model's video and that of the round that was asked for."""
    videos = notebook.videos()
    assert [video.plays for video in videos] == [True, True]
    assert (96, 64) in {(video.width, video.height) for video in videos}


def check_checkpoints(browser: Widget, output: Path) -> None:
    """Export the first, then delete it."""
    first = min(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    browser.click(first.name)
    browser.click("Export")
    browser.box.get_by_text("Exported to").wait_for(timeout=1000 * SECONDS)
    (exported,) = (output / "export").iterdir()
    assert exported.stat().st_size > 1000
    shoot(browser.notebook, browser.cell, "checkpoints")
    browser.click("Delete ...")
    browser.box.get_by_text(f"Delete {first.name} and free").wait_for()
    assert first.is_dir()
    browser.click("Delete it")
    browser.box.get_by_text(f"{first.name} is deleted").wait_for()
    assert not first.exists()
    assert browser.unnamed() == []


def test_the_players_of_the_gallery_move_together(tools: LabNotebook) -> None:
    gallery = Gallery(tools, GALLERY)
    gallery.wait_ready(PLAYERS)
    assert {(state["width"], state["height"]) for state in gallery.states()} == {SIZE}
    gallery.scrub(17)
    gallery.wait_at(17.5 / FPS, 0.5 / FPS, PLAYERS)
    gallery.click("One frame on")
    gallery.wait_at(18.5 / FPS, 0.5 / FPS, PLAYERS)
    gallery.scrub(0)
    gallery.wait_at(0.5 / FPS, 0.5 / FPS, PLAYERS)
    gallery.click("Play")
    wait_until(lambda: min(gallery.times(), default=0) > 0.6, 20, gallery.times)
    times = gallery.times()
    assert max(times) - min(times) < TOGETHER
    assert max(times) < FRAMES / FPS
    gallery.click("Pause")
    wait_until(lambda: len(gallery.times()) == PLAYERS)
    assert max(gallery.times()) - min(gallery.times()) < 1 / FPS


def test_the_gallery_compares_two_steps_and_plays_one_sound(tools: LabNotebook) -> None:
    gallery = Gallery(tools, GALLERY)
    gallery.wait_ready(PLAYERS)
    assert gallery.heard() == 0
    for place in (0, 1):
        gallery.box.get_by_role("button", name="Sound on", exact=True).nth(place).click()
        wait_until(lambda: gallery.heard() == 1, 10, gallery.heard)
    gallery.click("Sound off")
    wait_until(lambda: gallery.heard() == 0, 10, gallery.heard)

    gallery.click("Compare two steps")
    gallery.wait_ready(PLAYERS + 2)
    gallery.scrub(9)
    gallery.wait_at(9.5 / FPS, 0.5 / FPS, PLAYERS + 2)
    line = gallery.role("slider", "Line between left and right")
    over = gallery.box.locator(".tk-over")
    for percent in ("20", "75"):
        line.fill(percent)
        assert over.evaluate("one => getComputedStyle(one).clipPath").endswith(f"{percent}%)")
    assert gallery.unnamed() == []
    assert gallery.unreached(".tk-gallery") == []
    shoot(tools, GALLERY, "gallery")
    assert all(video.plays for video in tools.videos())
    check_clean(tools)


def test_captions_are_edited_and_put_back(tools: LabNotebook, lab: LabServer) -> None:
    clips = Widget(tools, CLIPS)
    files = sorted((lab.root / "dataset" / "clips").glob("*.txt"))
    before = [file.read_bytes() for file in files]
    clips.box.get_by_role("option").filter(has_text="clip-0").click()
    caption = clips.role("textbox", "Caption")
    wait_until(lambda: caption.input_value() == before[0].decode().strip())
    caption.fill("A rabbit wakes up.")
    caption.press("Tab")
    wait_until(lambda: files[0].read_text().strip() == "A rabbit wakes up.")
    assert [file.read_bytes() for file in files[1:]] == before[1:]
    clips.click("Undo (1)")
    wait_until(lambda: files[0].read_bytes() == before[0])

    clips.box.get_by_text("Change many captions at once").click()
    clips.role("textbox", "Find").fill("rabbit")
    clips.role("textbox", "Replace by").fill("hare")
    clips.box.get_by_text("in 3 of 4 files").wait_for()
    clips.click("Replace")
    wait_until(lambda: sum("A hare in shot" in file.read_text() for file in files) == 3)
    shoot(tools, CLIPS, "dataset")
    assert clips.unnamed() == []
    assert clips.unreached(".tk-data") == []
    clips.click("Undo (1)")
    wait_until(lambda: [file.read_bytes() for file in files] == before)
    check_clean(tools)


def test_a_filter_shows_the_dropped_clips_alone(tools: LabNotebook) -> None:
    clips = Widget(tools, CLIPS)
    show = clips.role("combobox", "Show")
    show.select_option("dropped")
    options = clips.box.get_by_role("listbox").get_by_role("option")
    wait_until(lambda: options.count() == 1)
    assert "too-short" in options.first.inner_text()
    show.select_option("all")
    wait_until(lambda: options.count() == 4)
    check_clean(tools)


def test_many_updates_leave_the_true_end_on_the_page(tools: LabNotebook) -> None:
    """A server drops messages that come too fast, and with them what the next cell shows."""
    cache = Widget(tools, CACHE)
    bar = cache.box.locator(".progress-bar").first
    assert bar.evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth") == pytest.approx(1, abs=0.01)
    assert f"{UPDATES} encoded in" in cache.box.inner_text()
    assert "the next cell" in Widget(tools, NEXT).box.inner_text()


def test_the_table_of_a_sweep_plays_its_video(tools: LabNotebook) -> None:
    table = Widget(tools, SWEEP)
    table.box.get_by_text("0.001").first.wait_for()
    assert table.box.locator("video").count() == 1
    shoot(tools, SWEEP, "sweep")
    assert table.unnamed() == []


def test_the_form_says_whether_it_fits_and_makes_it_fit(tools: LabNotebook) -> None:
    """The miniature; then the published model, too large a batch of it, and the change that is proposed."""
    form = Widget(tools, FORM)
    form.click("Does it fit?")
    bar = form.box.get_by_role("img")
    bar.wait_for(timeout=1000 * SECONDS)
    form.box.get_by_text("No GPU here").wait_for()
    first = bar.get_attribute("aria-label") or ""
    assert re.fullmatch(r"weights 2.\d MiB, adapter 96.* KiB, optimizer state .*, activations [\d.]+ MiB", first)

    tools.set("LoRA rank", 16)
    wait_until(lambda: "adapter 192" in (bar.get_attribute("aria-label") or ""), SECONDS)

    tools.set("Checkpoint", "")
    tools.set("Batch size", 8)
    tools.set("GPU memory", "12 GiB")
    form.box.get_by_text("✗ Does not fit 12.0 GiB").wait_for(timeout=1000 * SECONDS)
    apply = form.role("button", "Apply")
    apply.wait_for(timeout=1000 * SECONDS)
    proposed = form.box.get_by_text("What makes it fit").inner_text()
    assert "gradient_checkpointing = true" in proposed
    assert "Then it fits: " in proposed
    shoot(tools, FORM, "form_too_large")
    apply.click()
    form.box.get_by_text("✓ Fits 12.0 GiB").wait_for(timeout=1000 * SECONDS)
    assert not apply.is_visible()
    shoot(tools, FORM, "form_fits")
    tools.unfold("Memory")
    assert tools.field("gradient checkpointing").is_checked()
    assert form.unnamed() == []
    check_clean(tools)


def test_the_main_flow_with_colabs_versions(browser: Browser, colab_lab: LabServer, pristine_project: Path) -> None:
    """Clicks reach a cell that is busy there only because it fetches them."""
    root = colab_lab.root
    project = shutil.copytree(pristine_project, root / "project")
    clips, rounds = write_dataset(pristine_project, root / "dataset"), write_rounds(root / "rounds")
    file = write_notebook(
        root / "training.ipynb",
        opening(project, **SETTINGS),
        FOLLOW,
        f"tw.ValidationGallery({str(rounds)!r})",
        f"tw.DatasetBrowser(tk.load_config({str(clips)!r}))",
    )
    with browser.open(colab_lab, file.name) as notebook:
        notebook.start_all()
        wait_until(lambda: (project / "output" / "status.json").is_file(), SECONDS)
        dashboard = Dashboard(notebook, 1, tk.attach(project / "output"))
        dashboard.wait_state("training", SECONDS)
        dashboard.pause_and_resume()
        dashboard.stop()
        notebook.wait_done(SECONDS)
        assert notebook.failed_cells() == {}

        gallery = Gallery(notebook, 2)
        gallery.box.scroll_into_view_if_needed()
        gallery.wait_ready(PLAYERS)
        gallery.scrub(17)
        gallery.wait_at(17.5 / FPS, 0.5 / FPS, PLAYERS)

        browser_of_clips = Widget(notebook, 3)
        browser_of_clips.box.get_by_role("option").filter(has_text="clip-0").click()
        caption = browser_of_clips.role("textbox", "Caption")
        wait_until(lambda: caption.input_value() != "")
        caption.fill("A rabbit wakes up.")
        caption.press("Tab")
        wait_until(lambda: (root / "dataset/clips/clip-0.txt").read_text().strip() == "A rabbit wakes up.")
        check_clean(notebook)
