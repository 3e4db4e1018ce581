"""The form and small parts of the widgets, without kernel and browser: edits and clicks as a page would send them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from widget_messages import click, edit

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit_widgets import form_debounce, surroundings
from tunerkit_widgets.form_layout import FOLDED, MAIN, folded_infos
from tunerkit_widgets.form_state import FormState
from tunerkit_widgets.guard import guarded
from tunerkit_widgets.throttle import Throttle

WIDGETS = Path(tw.__file__).parent


@pytest.fixture
def on_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook with somebody in front of it, who edits slowly."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    monkeypatch.setattr(form_debounce, "REST", 0.0)


@pytest.fixture
def form(project: Path, request: pytest.FixtureRequest) -> tw.SetupForm:
    request.getfixturevalue("on_page")
    return tw.SetupForm(project)


def message(form: tw.SetupForm, name: str) -> str:
    return form.fields[name].message.value


# The form ------------------------------------------------------------------------------------------------------


def test_form_shows_the_projects_settings(form: tw.SetupForm, project: Path) -> None:
    assert list(form.fields) == list(MAIN)
    assert form.fields["lora_rank"].control.value == 8
    assert form.fields["learning_rate"].control.value == "0.003"
    assert form.fields["data_folder"].control.value == str(project / "clips")
    assert form.fields["model_family"].control.label == "Sana Video 2B"
    assert form.fields["model_flavour"].control.label == "default: 2b-480p"
    assert "Ready" in form.status.value
    assert form.config == tk.resolve(tk.load_config(project))


def test_an_edit_is_checked_at_once_and_the_message_stands_under_its_field(form: tw.SetupForm) -> None:
    edit(form.fields["lora_rank"].control, -3)
    assert "whole number from 1 to 1024" in message(form, "lora_rank")
    assert "whole number" not in message(form, "learning_rate")
    assert "1 setting is wrong" in form.status.value
    assert form.files.save_button.disabled

    edit(form.fields["learning_rate"].control, "fast")
    assert "is not a number" in message(form, "learning_rate")
    assert "2 settings are wrong" in form.status.value
    with pytest.raises(tk.ConfigError) as raised:
        _ = form.config
    assert {problem.key for problem in raised.value.problems} == {"lora_rank", "learning_rate"}

    edit(form.fields["lora_rank"].control, 32)
    edit(form.fields["learning_rate"].control, "2e-4")
    assert "Ready: LoRA of rank 32" in form.status.value
    assert not form.files.save_button.disabled
    assert (form.config.lora_rank, form.config.learning_rate) == (32, 2e-4)


def test_what_only_the_family_knows_is_checked_too(form: tw.SetupForm, tmp_path: Path) -> None:
    edit(form.fields["data_folder"].control, str(tmp_path / "nowhere"))
    assert "not found" in message(form, "data_folder")
    (tmp_path / "clips").mkdir()
    edit(form.fields["data_folder"].control, str(tmp_path / "clips"))
    assert form.config.media_datasets[0].instance_data_dir == tmp_path / "clips"
    edit(form.fields["pretrained_model_name_or_path"].control, "no such model!")
    assert "hub id" in message(form, "pretrained_model_name_or_path")


def test_an_emptied_field_is_left_to_the_family(form: tw.SetupForm) -> None:
    edit(form.fields["pretrained_model_name_or_path"].control, "")
    assert form.config.pretrained_model_name_or_path == tk.family("sanavideo").flavours["2b-480p"].repo


def test_dropdowns_send_their_index(form: tw.SetupForm) -> None:
    kinds = form.fields["model_type"].control
    data = {"method": "update", "state": {"index": 1}, "buffer_paths": []}
    kinds._handle_msg({"content": {"data": data}, "buffers": []})
    assert form.config.model_type == "full"
    assert "full fine-tuning" in form.status.value


def test_a_group_is_made_when_it_is_opened(form: tw.SetupForm) -> None:
    number = FOLDED.index("optimizer")
    assert not form.groups.children[number].children
    form.groups.selected_index = number
    names = [info.name for info in folded_infos("optimizer")]
    assert set(names) <= set(form.fields)
    assert "lr_scheduler" in names
    edit(form.fields["optimizer_beta1"].control, "1.5")
    assert "below 1" in message(form, "optimizer_beta1")
    edit(form.fields["optimizer_beta1"].control, "0.8")
    assert form.config.optimizer_beta1 == 0.8


@pytest.mark.usefixtures("on_page")
def test_a_problem_without_a_field_in_sight_is_written_out(project: Path) -> None:
    form = tw.SetupForm(project, caption_dropout_probability=2)
    assert "caption_dropout_probability" in form.status.value
    form.groups.selected_index = FOLDED.index("training")
    assert "from 0 to 1" in message(form, "caption_dropout_probability")
    edit(form.fields["caption_dropout_probability"].control, "0.5")
    assert form.config.caption_dropout_probability == 0.5


@pytest.mark.parametrize("group", FOLDED)
def test_every_group_starts_as_the_project_has_it(form: tw.SetupForm, group: str) -> None:
    before = form.config
    form.groups.selected_index = FOLDED.index(group)
    assert not form.problems
    assert not any(field.edited for field in form.fields.values())
    assert form.config == before


def test_save_writes_both_documents_and_keeps_the_old_ones(form: tw.SetupForm, project: Path) -> None:
    old = (project / "config.json").read_text()
    edit(form.fields["max_train_steps"].control, "77")
    click(form.files.save_button)
    assert "Saved" in form.files.said.value
    assert tk.load_config(project).max_train_steps == 77
    assert tk.resolve(tk.load_config(project)) == form.config
    assert json.loads((project / "config.json").read_text())["data_backend_config"] == "multidatabackend.json"
    assert json.loads((project / "multidatabackend.json").read_text())[0]["id"] == "demo-clips"
    assert (project / "config.json.bak").read_text() == old
    click(form.files.save_button)
    assert (project / "config.json.bak").read_text() == old


def test_an_error_in_a_callback_is_shown(form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk <full>")

    monkeypatch.setattr(FormState, "save", fail)
    click(form.files.save_button)
    assert "disk &lt;full&gt;" in form.files.said.value

    def stumble(*_: object) -> None:
        raise KeyError("<lost>")

    monkeypatch.setattr(FormState, "save", stumble)
    click(form.files.save_button)
    assert "KeyError: &#x27;&lt;lost&gt;&#x27;" in form.status.value
    assert "Traceback" in form.status.value


@pytest.mark.usefixtures("on_page")
def test_a_form_of_settings_has_to_be_told_where_to_save(project: Path, tmp_path: Path) -> None:
    form = tw.SetupForm(config=tk.load_config(project), lora_rank=4)
    click(form.files.save_button)
    assert "Write the path" in form.files.said.value
    with pytest.raises(ValueError, match="name the file"):
        form.save()
    saved = form.save(tmp_path / "new" / "config.json")
    assert tk.load_config(saved).lora_rank == 4


def test_where_nobody_can_click_the_settings_are_printed_or_raise(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = tw.SetupForm(project, seed=7)
    assert form.widget is None
    form._ipython_display_()
    printed = capsys.readouterr().out
    assert re.search(r"^lora_rank +8$", printed, re.MULTILINE)
    assert re.search(r"^seed +7$", printed, re.MULTILINE)
    assert "<td style='text-align:left'>seed</td><td style='text-align:left'>7</td>" in form.static()
    with pytest.raises(tk.ConfigError, match="lora_rank"):
        tw.SetupForm(project, lora_rank=-1)


def test_guided_form_leaves_what_is_not_chosen(project: Path) -> None:
    form = tw.guided_form(
        str(project), family="sanavideo", lora_rank=0, learning_rate=0.0, max_train_steps=5, output_dir=""
    )
    assert (form.config.lora_rank, form.config.learning_rate, form.config.max_train_steps) == (8, 0.003, 5)


def test_guided_form_makes_a_new_project_for_own_clips(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tw.guided_form("", family="sanavideo", data_folder=str(project / "clips")).config
    dataset = config.media_datasets[0]
    assert dataset.instance_data_dir == project / "clips"
    assert (dataset.video.num_frames, dataset.video.min_frames) == (81, 17)
    assert config.pretrained_model_name_or_path == "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"
    assert config.output_path == tmp_path / "sanavideo-project" / "output"
    assert not (tmp_path / "sanavideo-project").exists()


def test_guided_form_with_nothing_chosen_is_the_demo(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo-project").mkdir()
    project.rename(tmp_path / "demo-project" / "sanavideo")  # made before: only missing files are written
    monkeypatch.chdir(tmp_path)
    config = tw.guided_form("", family="sanavideo", lora_rank=0, output_dir="").config
    assert config == tk.resolve(tk.load_config(tmp_path / "demo-project" / "sanavideo"))


# Parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"), [({"allow_stdin": False}, True), ({"allow_stdin": True}, False), ({}, False)]
)
def test_headless_is_told_by_the_request(
    asked: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(surroundings.VARIABLE, raising=False)
    kernel = SimpleNamespace(get_parent=lambda: {"content": asked})
    monkeypatch.setattr(surroundings, "_kernel", lambda: kernel)
    assert tw.headless() is expected


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("no", False)])
def test_headless_can_be_forced(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(surroundings.VARIABLE, value)
    assert tw.headless() is expected


def test_throttle_lets_few_through_and_the_last_one_always() -> None:
    now, seen = [0.0], []
    throttle = Throttle(seen.append, per_second=4, clock=lambda: now[0])
    for number in range(20_000):
        now[0] = number / 2000  # ten seconds
        throttle(number)
    throttle.flush()
    assert len(seen) <= 42
    assert (seen[0], seen[-1]) == (0, 19_999)
    throttle.flush()
    assert seen.count(19_999) == 1


def test_throttle_waits_longer_for_slow_actions() -> None:
    now = [0.0]
    calls = []

    def slow(_: int) -> None:
        calls.append(now[0])
        now[0] += 1.0

    throttle = Throttle(slow, share=0.1, clock=lambda: now[0])
    throttle(0)
    now[0] = 10.9
    throttle(1)
    assert calls == [0.0]
    now[0] = 11.0
    throttle(2)
    assert calls == [0.0, 11.0]


def test_guarded_reports_and_goes_on() -> None:
    reported: list[str] = []
    assert guarded(lambda: 1 / 0, reported.append)() is None
    assert "ZeroDivisionError" in reported[0]
    assert guarded(lambda x: x + 1, reported.append)(1) == 2


# The package ---------------------------------------------------------------------------------------------------


def test_only_the_public_surface_of_tunerkit_is_used() -> None:
    allowed = {"tunerkit", "tunerkit.config", "tunerkit_widgets"}
    for path in WIDGETS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                private = name.startswith("tunerkit") and name.split(".")[0] != "tunerkit_widgets"
                assert not private or name in allowed, f"{path.name} imports {name}"


def test_a_form_needs_no_torch() -> None:
    code = "import tunerkit_widgets, sys; assert 'torch' not in sys.modules; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=WIDGETS.parent)
