"""What the form does beyond its fields: length of the run, presets, files, languages, bursts of edits."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from widget_messages import click, edit, wait

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit_widgets import form_count, form_debounce, surroundings, texts
from tunerkit_widgets.form_layout import DATA_FOLDER, FOLDED, MAIN
from tunerkit_widgets.form_presets import OWN, PRESETS, settings_of

STEPS = 90
"""Other than the project's."""


@pytest.fixture(autouse=True)
def _on_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a notebook with somebody in front of it, who edits slowly and reads English."""
    monkeypatch.setenv(surroundings.VARIABLE, "0")
    monkeypatch.setattr(form_debounce, "REST", 0.0)
    monkeypatch.delenv(texts.VARIABLE, raising=False)
    yield
    texts.choose_language(None)


@pytest.fixture
def form(project: Path) -> tw.SetupForm:
    return tw.SetupForm(project, max_train_steps=STEPS)


def counted(form: tw.SetupForm) -> str:
    """The line with the length of the run, as soon as the data is counted."""
    wait(lambda: "Counting" not in form.length.value)
    return form.length.value


# Length --------------------------------------------------------------------------------------------------------


def test_the_length_is_counted_from_the_data(form: tw.SetupForm) -> None:
    found = tk.inspect_dataset(form.config)
    samples, dropped, files = len(found.samples), len(found.dropped), len(found.rows)
    batches = tk.batch_plan(form.config, found.samples).batches_per_epoch
    words = counted(form)
    assert f"{STEPS} optimizer steps = {STEPS / batches:.1f}".removesuffix(".0") in words
    assert f"passes over {samples} samples, batch {form.config.train_batch_size}" in words
    assert (f"; {dropped} of {files} files are left out" in words) is bool(dropped)


def test_epochs_and_accumulation_make_the_steps(form: tw.SetupForm) -> None:
    counted(form)
    form.groups.selected_index = FOLDED.index("training")
    edit(form.fields["max_train_steps"].control, "")
    edit(form.fields["num_train_epochs"].control, "3")
    edit(form.fields["gradient_accumulation_steps"].control, 2)
    config = form.config
    batches = tk.batch_plan(config, tk.inspect_dataset(config).samples).first_batch(3)
    words = counted(form)
    assert ">3 passes over " in words
    assert f"samples = {-(-batches // 2)} optimizer steps, batch {config.train_batch_size} (x 2 accumulated)" in words


def test_figures_of_other_data_are_never_shown(form: tw.SetupForm, project: Path, tmp_path: Path) -> None:
    first = counted(form)
    edit(form.fields["learning_rate"].control, "2e-4")
    assert form.length.value == first  # the data is the same
    edit(form.fields["train_batch_size"].control, 3)
    assert "batch 3" in counted(form)

    few = tmp_path / "few"
    few.mkdir()
    for file in sorted((project / "clips").glob("*.*"))[:2]:
        shutil.copy(file, few)
    edit(form.fields["data_folder"].control, str(few))
    assert "not counted yet" in form.length.value
    assert form.report is None
    time.sleep(0.2)  # a folder that is being typed is not looked at unasked
    assert "not counted yet" in form.length.value
    click(form.count_button)
    assert "over 1 sample, batch 3" in counted(form)

    edit(form.fields["data_folder"].control, str(tmp_path / "nowhere"))
    assert form.count_button.disabled
    assert "not counted yet" in form.length.value


def test_a_count_that_comes_late_is_for_its_own_settings_only(
    form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(form)
    going, gate, real, asked = threading.Event(), threading.Event(), tk.inspect_dataset, []

    def slow(config: tk.TrainConfig) -> tk.DatasetReport:
        asked.append(config.train_batch_size)
        going.set()
        assert gate.wait(20)
        return real(config)

    monkeypatch.setattr(form_count.tk, "inspect_dataset", slow)
    edit(form.fields["train_batch_size"].control, 5)
    assert going.wait(20)
    for size in (3, 4):
        edit(form.fields["train_batch_size"].control, size)
        assert "Counting" in form.length.value
    gate.set()
    assert "batch 4" in counted(form)
    assert asked == [5, 4]


def test_data_that_cannot_be_counted_says_why(
    form: tw.SetupForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips <of mine>"
    folder.mkdir()
    edit(form.fields["data_folder"].control, str(folder))
    click(form.count_button)
    assert "clips &lt;of mine&gt;&#x27; holds no video" in counted(form)
    (folder / "broken.mp4").write_bytes(b"no video")
    click(form.count_button)
    wait(lambda: "No file of the datasets can be used (1 looked at)" in form.length.value)
    assert form.report is not None
    assert "No file" in counted(form)

    def fail(_: tk.TrainConfig) -> None:
        raise OSError("the disk <is gone>")

    monkeypatch.setattr(form_count.tk, "inspect_dataset", fail)
    click(form.count_button)
    wait(lambda: "the disk &lt;is gone&gt;" in form.length.value)
    assert "Ready" in form.status.value


def test_the_count_needs_every_data_setting_but_no_other(form: tw.SetupForm) -> None:
    """Whoever adds a setting has to decide on which side it is; most belong to the data."""
    config = form.config
    key = form_count.data_key(config)
    assert form_count.data_key(config.changed(learning_rate=7e-4, max_train_steps=3, lora_rank=2, seed=5)) == key
    assert form_count.data_key(config.changed(validation_prompt="a cat", gradient_checkpointing=True)) == key
    for change in (
        {"framerate": 8},
        {"output_dir": "elsewhere"},
        {"train_batch_size": 7},
        {"model_flavour": "2b-720p"},
    ):
        assert form_count.data_key(config.changed(**change)) != key
    assert form_count.data_key(config.changed(**{"datasets.0.repeats": 2})) != key


# Presets -------------------------------------------------------------------------------------------------------


def test_presets_are_made_of_settings_that_this_version_acts_on() -> None:
    active = {info.name for info in tk.describe() if info.active}
    assert all(settings_of(preset) <= active for preset in PRESETS)


def test_a_preset_fills_the_fields_and_says_what_it_costs(project: Path) -> None:
    form = tw.SetupForm(project, train_batch_size=4, gradient_accumulation_steps=2, mixed_precision="no")
    before = form.config
    form.groups.selected_index = FOLDED.index("memory")
    edit(form.preset.control, "light")
    assert form.fields["gradient_checkpointing"].control.value is True
    assert "gradient_checkpointing = true" in form.preset.message.value
    assert "a third longer" in form.preset.message.value
    assert (form.config.train_batch_size, form.config.mixed_precision) == (4, "no")

    edit(form.preset.control, "aggressive")
    config = form.config
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (1, 8)
    assert (config.mixed_precision, config.vae_dtype, config.vae_enable_tiling) == ("bf16", "bf16", True)
    assert form.fields["train_batch_size"].control.value == 1
    assert form.fields["vae_dtype"].control.value == "bf16"
    assert "not saved" in form.files.unsaved.value.lower()
    assert config.optimizer == before.optimizer  # an adapter gains nothing by another one

    form.groups.selected_index = FOLDED.index("training")
    assert form.fields["gradient_accumulation_steps"].control.value == 8
    edit(form.preset.control, "")
    assert form.config == config


def test_a_preset_after_which_nothing_changes_says_so(form: tw.SetupForm) -> None:
    edit(form.preset.control, "light")
    edit(form.preset.control, "")
    edit(form.preset.control, "light")
    assert "Left as they are" in form.preset.message.value
    assert "vae_enable_slicing" in form.preset.message.value
    assert "Settings changed" not in form.preset.message.value


def test_full_fine_tuning_gets_an_optimizer_without_masters(form: tw.SetupForm) -> None:
    edit(form.fields["model_type"].control, "full")
    edit(form.preset.control, "aggressive")
    assert form.config.optimizer == "adamw_bf16"
    assert form.config.base_model_precision == "no_change"


@pytest.mark.parametrize(
    ("settings", "precision"),
    [({}, "int8"), ({"base_model_precision": "nf4"}, "nf4"), ({"lora_init_type": "pissa"}, "no_change")],
)
def test_frozen_weights_are_rounded_where_nothing_needs_them_in_full(
    project: Path, settings: dict[str, Any], precision: str
) -> None:
    form = tw.SetupForm(project, **settings)
    assert not form.problems
    edit(form.preset.control, "aggressive")
    assert form.config.base_model_precision == precision


def test_an_edit_of_one_of_its_settings_makes_the_preset_ones_own(form: tw.SetupForm) -> None:
    edit(form.preset.control, "balanced")
    edit(form.fields["lora_rank"].control, 4)
    assert form.preset.control.value == "balanced"
    edit(form.fields["train_batch_size"].control, 2)
    assert form.preset.control.value == OWN
    assert form.config.train_batch_size == 2


@pytest.mark.parametrize(("size", "accumulated"), [("many", 1), (0, 1), (4, "x")])
def test_a_preset_leaves_batches_that_are_wrong_to_their_messages(project: Path, size: Any, accumulated: Any) -> None:
    form = tw.SetupForm(project, train_batch_size=size, gradient_accumulation_steps=accumulated)
    problems = {problem.key for problem in form.problems}
    assert problems
    edit(form.preset.control, "aggressive")
    assert {problem.key for problem in form.problems} == problems
    assert form._state.value("train_batch_size") == size


# Files ---------------------------------------------------------------------------------------------------------


def test_unsaved_changes_are_said(form: tw.SetupForm, project: Path) -> None:
    assert "Not saved" in form.files.unsaved.value  # the cell's max_train_steps
    click(form.files.save_button)
    assert form.files.unsaved.value == ""
    edit(form.fields["lora_rank"].control, 5)
    assert "Not saved" in form.files.unsaved.value
    assert form.files.said.value == ""
    edit(form.fields["lora_rank"].control, 8)
    assert form.files.unsaved.value == ""
    edit(form.files.path, str(project / "other.json"))
    assert "Not saved" in form.files.unsaved.value
    click(form.files.save_button)
    assert form.files.unsaved.value == ""
    assert tk.load_config(project / "other.json").max_train_steps == STEPS


def test_load_replaces_what_stands_in_the_form(form: tw.SetupForm, project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tk.load_config(project).changed(lora_rank=3, seed=9).save(
        other / "config.json", dataset_document=other / "multidatabackend.json"
    )
    edit(form.fields["learning_rate"].control, "fast")
    edit(form.preset.control, "light")
    form.groups.selected_index = FOLDED.index("training")
    edit(form.files.path, str(other))
    click(form.files.load_button)
    assert "Loaded" in form.files.said.value
    assert form.files.path.value == str(other / "config.json")
    assert form.files.unsaved.value == ""
    assert form.preset.control.value == ""
    assert form.groups.selected_index == FOLDED.index("training")
    assert form.fields["seed"].control.value == 9
    assert form.config == tk.resolve(tk.load_config(other))
    assert form.save() == other / "config.json"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "not found"),
        ("{", "JSON"),
        ("[1]", "object"),
        ('{"lora_rank": "many"}', "lora_rank"),
        ('{"learning_rat": 1}', "learning_rate"),
    ],
)
def test_a_wrong_document_changes_nothing(
    form: tw.SetupForm, tmp_path: Path, written: str | None, message: str
) -> None:
    if written is not None:
        (tmp_path / "bad.json").write_text(written)
    before, fields = form.config, form.fields
    edit(form.fields["lora_rank"].control, 5)
    edit(form.files.path, str(tmp_path / "bad.json"))
    click(form.files.load_button)
    assert "Nothing was loaded" in form.files.said.value
    assert message in form.files.said.value
    assert form.fields is fields
    assert form.config == before.changed(lora_rank=5)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 400, "a\0b", "/root/../proc/1/mem"])
def test_a_path_that_cannot_be_is_no_error_of_the_form(form: tw.SetupForm, path: str) -> None:
    edit(form.files.path, path)
    assert "Ready" in form.status.value
    click(form.files.load_button)
    assert "Nothing was loaded" in form.files.said.value
    assert "Ready" in form.status.value


def test_an_empty_path_is_asked_for(form: tw.SetupForm) -> None:
    edit(form.files.path, "  ")
    for button in (form.files.load_button, form.files.save_button):
        click(button)
        assert "Write the path" in form.files.said.value


# Languages -----------------------------------------------------------------------------------------------------


def test_another_language_keeps_everything(form: tw.SetupForm) -> None:
    counted(form)
    form.groups.selected_index = FOLDED.index("optimizer")
    edit(form.fields["learning_rate"].control, "fast")
    edit(form.fields["optimizer_beta1"].control, "0.8")
    edit(form.preset.control, "light")
    edit(form.files.path, "elsewhere")
    old = form.fields["learning_rate"].control
    names = [name for name, _ in form.language.options]
    assert names == ["English", "Español", "हिन्दी", "日本語"]
    for code in ("hi", "ja", "es"):
        edit(form.language, code)
        words = texts.texts_of(code)
        assert form.fields["lora_rank"].control.description == words["label.lora_rank"]
        assert words["help.data_folder"] in form.fields["data_folder"].message.value
        assert form.fields["learning_rate"].control.value == "fast"
        assert "is not a number" in form.fields["learning_rate"].message.value
        assert form.fields["optimizer_beta1"].control.value == "0.8"
        assert form.groups.selected_index == FOLDED.index("optimizer")
        assert (form.preset.control.value, form.files.path.value) == ("light", "elsewhere")
    assert old.comm is None  # what was drawn before is not kept
    edit(form.fields["learning_rate"].control, "1e-4")
    assert (form.config.learning_rate, form.config.optimizer_beta1) == (1e-4, 0.8)
    assert form.config.max_train_steps == STEPS


def test_the_language_of_the_surroundings_comes_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(texts.VARIABLE, "ja_JP.UTF-8")
    form = tw.SetupForm(project)
    assert form.language.options[0] == ("日本語", "ja")
    assert form.language.value == "ja"


def test_settings_are_described_in_the_language_or_in_english(
    form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = next(info for info in tk.describe() if info.name == "lora_rank")
    monkeypatch.setitem(texts.texts_of("hi"), "setting.lora_rank", "रैंक <b>")
    assert texts.setting_text(rank) == rank.description
    edit(form.language, "hi")
    assert "रैंक &lt;b&gt;" in form.fields["lora_rank"].message.value
    monkeypatch.delitem(texts.texts_of("hi"), "setting.lora_rank")
    assert texts.setting_text(rank) == rank.description


# Fields --------------------------------------------------------------------------------------------------------


def test_the_end_of_a_long_path_can_be_read(form: tw.SetupForm, tmp_path: Path) -> None:
    folder = tmp_path / "a folder with a <long> name"
    folder.mkdir()
    edit(form.fields["output_dir"].control, str(folder))
    assert "a folder with a &lt;long&gt; name</code>" in form.fields["output_dir"].message.value
    edit(form.fields["output_dir"].control, "out")
    assert "<code>" not in form.fields["output_dir"].message.value
    edit(form.fields["validation_prompt"].control, "A very long prompt. " * 9)
    assert "<code>" not in form.fields["validation_prompt"].message.value


# Bursts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def checks(form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of the checks, of somebody who types."""
    times: list[float] = []
    real = form._state.check
    monkeypatch.setattr(form._state, "check", lambda: (times.append(time.monotonic()), real())[1])
    monkeypatch.setattr(form_debounce, "REST", 0.15)
    return times


def test_a_burst_of_edits_is_checked_few_times_and_at_its_end(form: tw.SetupForm, checks: list[float]) -> None:
    prompt = "a cat that walks through a garden"
    for end in range(1, len(prompt) + 1):
        edit(form.fields["validation_prompt"].control, prompt[:end])
    edit(form.fields["lora_rank"].control, -3)
    checked = form._state.changes["validation_prompt"]  # the first letter, and few more where the machine is busy
    assert checked != prompt
    assert prompt.startswith(checked)
    with pytest.raises(tk.ConfigError, match="lora_rank"):
        _ = form.config  # and yet the settings are those in the fields
    wait(lambda: "whole number" in form.fields["lora_rank"].message.value, 5)
    assert 2 <= len(checks) <= 4
    edit(form.fields["lora_rank"].control, 4)
    assert form.config.validation_prompt == prompt


def test_a_check_never_waits_for_the_end_of_the_edits(form: tw.SetupForm, checks: list[float]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < 1.4:
        edit(form.fields["learning_rate"].control, f"{time.monotonic()}")
        time.sleep(0.02)
    assert 3 <= len(checks) <= 5
    gaps = [after - before for before, after in zip(checks, checks[1:], strict=False)]
    assert max(gaps) < form_debounce.LONGEST + 0.4


def test_saving_and_presets_do_not_wait(form: tw.SetupForm, checks: list[float], project: Path) -> None:
    edit(form.fields["lora_rank"].control, 3)
    edit(form.fields["lora_rank"].control, 4)
    click(form.files.save_button)
    assert form.files.unsaved.value == ""
    assert tk.load_config(project).lora_rank == 4
    for rank in (5, -5):
        edit(form.fields["lora_rank"].control, rank)
    click(form.files.save_button)
    assert "whole number" in form.fields["lora_rank"].message.value
    assert tk.load_config(project).lora_rank == 4
    edit(form.fields["lora_rank"].control, 6)
    edit(form.preset.control, "light")
    assert "Not saved" in form.files.unsaved.value
    before = len(checks)
    time.sleep(0.3)
    assert len(checks) == before  # nothing is left over


def test_where_threads_do_not_reach_the_page_every_edit_is_checked(
    form: tw.SetupForm, checks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(form_debounce.sys.modules, "google.colab", json)
    for rank in (3, 4, -5):
        edit(form.fields["lora_rank"].control, rank)
    assert len(checks) == 3
    assert "whole number" in form.fields["lora_rank"].message.value


def test_an_error_in_a_late_check_is_shown(form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_debounce, "REST", 0.05)

    def fail() -> None:
        raise RuntimeError("lost <it>")

    edit(form.fields["lora_rank"].control, 3)
    monkeypatch.setattr(form._state, "check", fail)
    edit(form.fields["lora_rank"].control, 4)
    wait(lambda: "RuntimeError: lost &lt;it&gt;" in form.status.value, 5)


def test_edits_from_several_threads_end_in_one_state(form: tw.SetupForm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_debounce, "REST", 0.01)
    counted(form)

    def type_into(name: str) -> None:
        for number in range(1, 41):
            edit(form.fields[name].control, number if name == "lora_rank" else f"{number}e-5")

    threads = [threading.Thread(target=type_into, args=(name,)) for name in ("lora_rank", "learning_rate")]
    for thread in threads:
        thread.start()
    for _ in range(5):
        edit(form.preset.control, "light")
        edit(form.preset.control, "")
    for thread in threads:
        thread.join()
    wait(lambda: "Ready: LoRA of rank 40" in form.status.value, 5)
    assert (form.config.lora_rank, form.config.learning_rate) == (40, 40e-5)
    assert set(form.fields) == set(MAIN)


def test_only_what_was_loaded_is_replaced(form: tw.SetupForm, project: Path, tmp_path: Path) -> None:
    """Files of others, and edits that were made meanwhile, stay as they are."""
    notes = tmp_path / "notes.json"
    notes.write_text("my notes")
    with pytest.raises(tk.TunerkitError, match="not what was loaded or saved here"):
        form.save(notes)
    assert notes.read_text() == "my notes"
    with pytest.raises(tk.TunerkitError, match="not what was loaded or saved here"):
        form.save(project / "multidatabackend.json")
    with pytest.raises(tk.TunerkitError, match="the name of the datasets' file"):
        form.save(tmp_path / "new" / "multidatabackend.json")
    form.save()
    settings = project / "config.json"
    settings.write_text(settings.read_text().replace('"lora_rank": 8', '"lora_rank": 5'))
    with pytest.raises(tk.TunerkitError, match="load it first"):
        form.save()
    assert tk.load_config(project).lora_rank == 5


def test_a_second_configuration_leaves_the_datasets_of_the_first(form: tw.SetupForm, project: Path) -> None:
    before = (project / "multidatabackend.json").read_bytes()
    (project / "others").mkdir()
    edit(form.fields[DATA_FOLDER].control, str(project / "others"))
    form.save(project / "second.json")
    assert (project / "multidatabackend.json").read_bytes() == before
    assert tk.load_config(project / "second.json").datasets[0].instance_data_dir == project / "others"


def test_a_saved_project_can_be_moved(form: tw.SetupForm, project: Path, tmp_path: Path) -> None:
    edit(form.fields["lora_rank"].control, 3)
    form.save()
    moved = tmp_path / "moved"
    project.rename(moved)
    config = tk.load_config(moved)
    assert config.lora_rank == 3
    assert config.output_path == moved / "output"
    assert config.datasets[0].instance_data_dir == moved / "clips"
    assert str(config.pretrained_model_name_or_path) == str(moved / "model")
