"""The memory of a GPU in the setup form: the process that plans, the bar, and the change that makes it fit."""

from __future__ import annotations

import io
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from widget_messages import click, edit, wait

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit_widgets import form_debounce, form_memory, plan_process, surroundings, texts
from tunerkit_widgets.form_layout import FOLDED
from tunerkit_widgets.form_memory import PHASES, machine_ram, plan_html, way_html
from tunerkit_widgets.form_presets import OWN
from tunerkit_widgets.memory_bar import bar_html
from tunerkit_widgets.plan_process import Batch, Figures, PlanProcess, Question, Way
from tunerkit_widgets.plan_view import plan_html as plan_page

GIB = 2**30
FITS = Figures(
    "training step",
    10 * GIB,
    {"weights": 6 * GIB, "activations": 4 * GIB},
    Batch(832, 480, 81, 1),
    ram=3 * GIB,
    vram=24 * GIB,
    fits=True,
    complete=True,
)
TOO_MUCH = replace(FITS, vram=8 * GIB, fits=False, complete=False)
WAY = Way(
    [({"gradient_checkpointing": True}, "checkpointing"), ({"datasets.demo-clips.resolution": 96.0}, "smaller_clips")],
    7 * GIB,
    5 * GIB,
    True,
)


@pytest.fixture(autouse=True)
def _on_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    monkeypatch.setattr(form_debounce, "REST", 0.0)
    monkeypatch.setattr(form_memory, "REST", 0.05)
    monkeypatch.setattr("tunerkit_widgets.memory_row.REST", 0.05)
    monkeypatch.setattr(form_memory, "IDLE", 0.2)
    monkeypatch.delenv(texts.VARIABLE, raising=False)
    yield
    texts.choose_language(None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """What was asked; a GPU of 8 GiB is too small, until `gradient_checkpointing` is on."""
    questions: list[Question] = []

    def ask(_: PlanProcess, question: Question) -> Iterator[Figures]:
        questions.append(question)
        if question.vram_gib != 8 or question.config.gradient_checkpointing:
            yield FITS
            return
        yield TOO_MUCH
        yield replace(TOO_MUCH, way=WAY, complete=True)

    monkeypatch.setattr(PlanProcess, "ask", ask)
    return questions


@pytest.fixture
def form(project: Path) -> tw.SetupForm:
    form = tw.SetupForm(project)
    wait(lambda: "Counting" not in form.length.value)
    return form


def planned(form: tw.SetupForm) -> str:
    """The bar and the line below it, as soon as they are there."""
    wait(lambda: "role='img'" in form.memory.said.value)
    return form.memory.said.value


# When it is planned --------------------------------------------------------------------------------------------


def test_nothing_is_planned_unasked_and_then_plans_follow_the_settings(
    form: tw.SetupForm, asked: list[Question]
) -> None:
    edit(form.fields["lora_rank"].control, 4)
    time.sleep(0.15)
    assert "not planned yet" in form.memory.said.value
    assert [part.layout.display for part in form.memory.box.children] == [None, None, "none"]
    assert asked == []
    click(form.memory.plan_button)
    assert "✓ Fits 24.0 GiB" in planned(form)
    assert (asked[0].config.lora_rank, asked[0].vram_gib, asked[0].advise) == (4, None, True)
    assert {one.bucket for one in asked[0].samples} == {one.bucket for one in tk.inspect_dataset(form.config).samples}
    for rank in (5, 6, 7):
        edit(form.fields["lora_rank"].control, rank)
        assert "Planning" in form.memory.said.value
    planned(form)
    assert asked[-1].config.lora_rank == 7
    assert len(asked) <= 3  # those that were typed on the way were skipped
    count = len(asked)
    edit(form.fields["learning_rate"].control, "2e-5")
    assert "Fits" in form.memory.said.value  # it does not depend on that
    assert len(asked) == count
    wait(lambda: form._plans._thread is None)  # after a while, thread and process are let go
    edit(form.fields["lora_rank"].control, 3)
    planned(form)
    assert asked[-1].config.lora_rank == 3
    edit(form.fields["lora_rank"].control, -1)
    assert form.memory.plan_button.disabled
    assert "once the settings are right" in form.memory.said.value
    edit(form.fields["lora_rank"].control, 3)
    assert "Fits" in form.memory.said.value  # it is known already


def test_a_plan_that_comes_late_is_for_its_own_settings_only(
    form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, going, seen = threading.Event(), threading.Event(), []

    def ask(_: PlanProcess, question: Question) -> Iterator[Figures]:
        seen.append(question.config.lora_rank)
        going.set()
        assert gate.wait(20)
        yield replace(FITS, batch=FITS.batch._replace(frames=question.config.lora_rank))

    monkeypatch.setattr(PlanProcess, "ask", ask)
    edit(form.fields["lora_rank"].control, 3)
    click(form.memory.plan_button)
    assert going.wait(20)
    edit(form.fields["lora_rank"].control, 4)
    assert "Planning" in form.memory.said.value
    gate.set()
    assert "832x480, 4 frames, batch of 1" in planned(form)
    assert seen == [3, 4]


def test_a_plan_that_is_there_before_it_is_asked_for_again_is_made_anew_by_the_button_only(
    form: tw.SetupForm, asked: list[Question]
) -> None:
    plans = form_memory.MemoryPlans(lambda: None)
    wanted = form_memory.question(form.config, (), None, advise=False)
    for anew, count in ((False, 1), (False, 1), (True, 2)):
        plans.start(wanted, rest=0, anew=anew)
        plans.wait()
        assert len(asked) == count


def test_where_threads_do_not_reach_the_page_the_button_waits(
    form: tw.SetupForm, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(form_debounce.sys.modules, "google.colab", re)
    click(form.memory.plan_button)
    assert "Fits" in form.memory.said.value
    edit(form.fields["lora_rank"].control, 4)
    assert "not planned yet" in form.memory.said.value
    time.sleep(0.15)
    assert len(asked) == 1


# What is shown -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("asked")
def test_what_makes_it_fit_is_applied_with_a_click(form: tw.SetupForm) -> None:
    form.groups.selected_index = FOLDED.index("memory")
    edit(form.memory.size, 8)
    wait(lambda: form.memory.way is not None)
    assert "✗ Does not fit 8.0 GiB" in form.memory.said.value
    words = form.memory.advice.value
    assert "gradient_checkpointing = true</code>: activations are computed again" in words
    assert "resolution = 96" in words
    assert "Then it fits: 7.0 GiB at most, 3.0 GiB less; RAM: 5.0 GiB." in words
    click(form.memory.apply_button)
    assert form.fields["gradient_checkpointing"].control.value is True
    assert form.config.gradient_checkpointing
    assert form.config.media_datasets[0].resolution == 96.0
    assert "Fits 24.0 GiB" in planned(form)
    assert form.memory.advice.value == ""
    assert form.memory.apply_button.layout.display == "none"


@pytest.mark.usefixtures("asked")
def test_what_is_applied_makes_a_preset_ones_own(form: tw.SetupForm) -> None:
    edit(form.preset.control, "light")
    form._state.changes["gradient_checkpointing"] = False
    edit(form.memory.size, 8)
    wait(lambda: form.memory.way is not None)
    click(form.memory.apply_button)
    assert form.preset.control.value == OWN


def test_the_bar_shows_and_says_its_parts() -> None:
    bar = bar_html(TOO_MUCH)
    assert "aria-label='weights 6.0 GiB, activations 4.0 GiB, CUDA itself 512.0 MiB'" in bar
    widths = [float(share) for share in re.findall(r"flex:none;width:([\d.]+)%", bar)]
    assert sum(widths) == pytest.approx(100, abs=0.05)
    assert widths[0] == pytest.approx(100 * 6 / 10.5, abs=0.01)
    assert re.findall(r"left:([\d.]+)%", bar) == [f"{100 * 8 / 10.5:.2f}"] * 2  # the hatching, and the line
    bar = bar_html(FITS)
    assert re.search(r"width:25\.00%;background:var\(--jp-brand", bar)
    assert "left:" not in bar
    unknown = bar_html(replace(FITS, vram=None, fits=None))
    assert "left:" not in unknown
    assert "CUDA" not in unknown
    assert re.findall(r"flex:none;width:([\d.]+)%", unknown) == ["60.00", "40.00"]


def test_ram_is_told_and_marked_where_the_machine_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = replace(FITS, batch=Batch(64, 32, 1, 2, sound=2.041))
    monkeypatch.setattr(form_memory, "machine_ram", lambda: 5 * GIB)
    assert "in the training step (64x32, 2.04 s of sound, batch of 2); RAM: 3.0 GiB.<" in plan_html(heard)
    assert "This machine has only 5.0 GiB of RAM." in way_html(replace(TOO_MUCH, way=WAY, complete=True))
    monkeypatch.setattr(form_memory, "machine_ram", lambda: 5 * GIB - 1)  # the libraries take 2 GiB
    assert "This machine has only 5.0 GiB of RAM." in plan_html(heard)
    monkeypatch.setattr(form_memory, "machine_ram", lambda: None)
    assert "This machine" not in plan_html(heard)
    assert machine_ram() == psutil.virtual_memory().total  # the real one, imported before


def test_all_that_can_be_proposed_or_named_has_words() -> None:
    from tunerkit.planning import advice, result

    assert result.PhasePlan.__doc__ is not None
    assert re.findall(r'"([a-z ]+)"', result.PhasePlan.__doc__.partition("peak:")[0]) == list(PHASES)
    for code in texts.languages():
        words = texts.texts_of(code)
        assert {f"change.{key}" for key in advice.MEANINGS} == {key for key in words if key.startswith("change.")}
        assert set(PHASES.values()) <= words.keys()


def test_a_plan_that_fails_says_why(form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> None:
        raise tk.TunerkitError("no such <model>")

    monkeypatch.setattr(PlanProcess, "ask", ask)
    click(form.memory.plan_button)
    wait(lambda: "no such &lt;model&gt;" in form.memory.said.value)
    assert "Ready" in form.status.value


def test_another_language_keeps_the_plan(form: tw.SetupForm, asked: list[Question]) -> None:
    edit(form.memory.size, 8)
    wait(lambda: form.memory.way is not None)
    for code in ("hi", "ja", "es"):
        edit(form.language, code)
        words = texts.texts_of(code)
        assert form.memory.size.value == 8
        assert words["memory.weights"] in form.memory.said.value
        assert words["change.checkpointing"] in form.memory.advice.value
        assert words["change.smaller_clips"] in form.memory.advice.value
    assert len(asked) == 1


def test_a_plan_in_a_notebook_is_in_the_readers_language(capsys: pytest.CaptureFixture[str]) -> None:
    """The phases, all to one scale; a stand-in, so that nothing is traced."""
    parts = {"activations": 4 * GIB, "weights": 6 * GIB}
    phases = [SimpleNamespace(name=name, peak=10 * GIB, parts=parts, ram=3 * GIB) for name in PHASES]
    phases[0] = SimpleNamespace(name="text encoding", peak=15 * GIB, parts={"weights": 15 * GIB}, ram=2 * GIB)
    fitting = SimpleNamespace(peak=7 * GIB, ram=3 * GIB, fits=True)
    plan: Any = SimpleNamespace(
        phases=phases,
        largest_phase=phases[0],
        largest=SimpleNamespace(width=832, height=480, frames=81, clips=1, sound=None),
        ram=3 * GIB,
        vram=12 * GIB,
        fits=False,
        changes=(SimpleNamespace(settings={"ema_device": "cpu"}, key="ema_in_ram", plan=fitting),),
        disk=SimpleNamespace(total=5 * GIB),
        gpu=SimpleNamespace(name="L4"),
        seconds=SimpleNamespace(typical=75.0, low=7.61),
        _repr_html_=lambda: "<p>numbers</p>",
    )
    for code in texts.languages():
        texts.choose_language(code)
        page, words = plan_page(plan), texts.texts_of(code)
        assert all(page.count(f"<div>{words[key]}</div>") == 1 for key in PHASES.values())
        assert words["change.ema_in_ram"] in page
        assert words["memory.to_fit"] in page
        assert "5.0 GiB" in page
    texts.choose_language("en")
    page = plan_page(plan)
    assert "Does not fit 12.0 GiB:" in page
    assert "A step on L4: about 1 min 15 s, at best 7.6 s." in page
    assert "<details><summary>All numbers</summary><p>numbers</p>" in page
    widths = [float(share) for share in re.findall(r"flex:none;width:([\d.]+)%", page)]
    assert widths[:2] == [96.77, 3.23]  # 15 of 15.5 GiB
    assert widths[2:5] == [38.71, 25.81, 3.23]  # 6, 4 and 0.5: the weights are first
    assert re.findall(r"left:([\d.]+)%", page) == ["77.42"] * (len(PHASES) + 1)  # a line each, one is hatched beyond
    plan.gpu, plan.fits, plan.vram = None, None, None
    assert "A step" not in plan_page(plan)
    tw.show_plan(plan)
    assert capsys.readouterr().out == f"{plan}\n"


# The process ---------------------------------------------------------------------------------------------------


def test_answers_go_through_pipes(monkeypatch: pytest.MonkeyPatch, make_config: Any) -> None:
    question = Question("key", tk.resolve(make_config()), (), 8, True)
    change = SimpleNamespace(settings={"a": 1}, key="why", plan=SimpleNamespace(peak=3, ram=11, fits=True))
    plan = SimpleNamespace(
        largest_phase=SimpleNamespace(name="validation", peak=9, parts={"weights": 9}),
        largest=SimpleNamespace(width=8, height=4, frames=9, clips=2, sound=0.5),
        ram=7,
        vram=8,
        fits=False,
        changes=(change,),
    )
    monkeypatch.setattr(tk, "plan", lambda *_, **__: plan, raising=False)
    sent = io.BytesIO(pickle.dumps(question) + pickle.dumps(question._replace(advise=False)))
    answers = io.BytesIO()
    plan_process.serve(sent, answers)
    answers.seek(0)
    found = [pickle.load(answers) for _ in range(5)]
    assert answers.read() == b""
    first = Figures("validation", 9, {"weights": 9}, Batch(8, 4, 9, 2, 0.5), 7, 8, False)
    full = replace(first, way=Way([({"a": 1}, "why")], 3, 11, True), complete=True)
    assert found == [first, full, None, replace(first, complete=True), None]


def test_a_plan_of_the_real_process(project: Path) -> None:
    config, process = tk.resolve(tk.load_config(project)), PlanProcess()
    try:
        answers = list(process.ask(Question("", config, (), 80, True)))
        with pytest.raises(tk.ConfigError) as wrong:
            tk.plan(config, -1.0)
        with pytest.raises(tk.TunerkitError, match=re.escape(str(wrong.value))):
            list(process.ask(Question("", config, (), -1.0, True)))
        child = process._process
        assert child is not None
    finally:
        process.close()
    assert child.poll() is not None
    assert [(one.fits, one.complete) for one in answers] == [(True, True)]
    assert sum(answers[0].parts.values()) == answers[0].peak > 2**20


def test_a_process_that_dies_is_told(make_config: Any) -> None:
    process = PlanProcess()
    dying = [sys.executable, "-c", "import sys; sys.stdin.buffer.read(1); sys.exit(3)"]
    process._process = subprocess.Popen(dying, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with pytest.raises(tk.TunerkitError, match="has ended with code 3"):
        list(process.ask(Question("", make_config(), (), 80, True)))
    process.close()
