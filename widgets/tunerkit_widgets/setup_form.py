"""The form in front of the settings."""

from __future__ import annotations

import html
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets

import tunerkit as tk
from tunerkit_widgets.form_count import SampleCount, length
from tunerkit_widgets.form_debounce import Debounced, threads_reach_page
from tunerkit_widgets.form_files import FilesRow, content_of, document_of
from tunerkit_widgets.form_layout import (
    FOLDED,
    FOLDED_LABEL_WIDTH,
    MAIN,
    close_all,
    count_button,
    flavour_options,
    folded_groups,
    folded_infos,
    grid,
    language_field,
    main_field,
    published,
)
from tunerkit_widgets.form_memory import MemoryPlans
from tunerkit_widgets.form_presets import AS_SET, PRESETS, changes_of
from tunerkit_widgets.form_state import FormState
from tunerkit_widgets.form_status import field_name, notes_html, status_html
from tunerkit_widgets.guard import QUIET_COLOUR, guarded
from tunerkit_widgets.memory_row import OWN_GPU, MemoryRow
from tunerkit_widgets.preset_field import PresetField
from tunerkit_widgets.setting_field import SettingField, as_text
from tunerkit_widgets.surroundings import headless, show_view
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import choose_language, text


class SetupForm:
    """Settings to look at and change; each edit is checked at once, with the message under its field.

    Below the fields stand the length of the run, counted from the data, and the file that they are loaded from and
    saved to. A preset fills in the settings that save memory.

    Where nobody can click, nothing is drawn: the resolved settings are shown as a table, and wrong ones raise.

    Args:
        project: a settings document (`config.json`) or the folder that holds one.
        config: settings, instead of a document.
        save_to: file that `save()` writes; the project's own document when not given.
        settings: changes to begin with, by name; `data_folder` is the folder of the first dataset of clips.

    Raises:
        ConfigError: the document itself is wrong; or, where nobody can click, any setting is.
    """

    def __init__(
        self,
        project: str | Path | None = None,
        *,
        config: tk.TrainConfig | None = None,
        save_to: str | Path | None = None,
        **settings: Any,
    ) -> None:
        if (project is None) == (config is None):
            raise ValueError("SetupForm needs either a project or a config")
        base = config if config is not None else tk.load_config(str(project))
        self._state = FormState(base, settings)
        self._save_to = document_of(save_to if save_to is not None else project)
        self._saved = None if project is None or save_to is not None else base
        self._known = content_of(self._save_to) if self._saved is not None else None
        self._resolved: tk.TrainConfig | None = None
        self._lock = threading.RLock()  # edits come from the kernel's threads, checks and counts from others
        self._filling = False
        self.fields: dict[str, SettingField] = {}
        """Fields made so far, by setting; a folded group is made when it is opened."""
        self.widget: Any = None
        self.problems: Sequence[Any] = ()
        if headless():
            self._state.resolved()
        else:
            self._build()

    # Results ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> tk.TrainConfig:
        """The settings as they stand in the form, checked and complete.

        Raises:
            ConfigError: every problem at once.
        """
        with self._lock:
            self._collect()
            return self._state.resolved()

    def save(self, path: str | Path | None = None) -> Path:
        """Write config.json and, beside it, multidatabackend.json; replaced documents are kept once as `.bak`.

        Raises:
            ConfigError: if the settings are not valid.
            TunerkitError: if the file exists, and holds something else than was loaded or saved here.
            ValueError: if neither here nor for the form a file was named.
        """
        target = document_of(path) or self._save_to
        if target is None:
            raise ValueError("name the file to save to: form.save('my-project/config.json')")
        with self._lock:
            self._collect()
            written = self._state.save(target, self._known if target == self._save_to else None)
            self._saved, self._save_to, self._known = self._state.chosen(), written, content_of(written)
            if self.widget is not None:
                self.files.path.value = str(written)
                self._edit.flush()
        return written

    # Static ----------------------------------------------------------------------------------------------------

    def rows(self) -> list[tuple[str, str]]:
        """(setting, value) of the settings always in sight and of all that were changed, as resolved."""
        config = self.config
        state = FormState(config, {})
        names = [
            *MAIN,
            *(name for name in self._state.changes if name not in MAIN and name in type(config).model_fields),
        ]
        return [(name, as_text(state.value(name)) or "-") for name in names]

    def static(self) -> str:
        """The settings as an HTML table."""
        head = (text("form.setting"), text("form.value"))
        return table_html(self.rows(), head) + notes_html(self.config)

    def __str__(self) -> str:
        notes = [text("form.note", note=str(note)) for note in self.config.notes]
        return "\n".join([table_text(self.rows(), (text("form.setting"), text("form.value"))), *notes])

    def _ipython_display_(self) -> None:
        show_view(self)

    # Widgets ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.language = language_field()
        self.language.observe(guarded(self._choose_language, self._fail), "value")
        self.widget = widgets.VBox([widgets.HBox([self.language], layout=widgets.Layout(justify_content="flex-end"))])
        self._count = SampleCount(guarded(self._show_counted, self._fail))
        self._plans = MemoryPlans(guarded(self._show_memory, self._fail))
        self._edit = Debounced(guarded(self._check, self._fail))
        self._draw()
        self._begin()

    def _draw(
        self, opened: int | None = None, preset: str = AS_SET, path: str | None = None, gpu: int = OWN_GPU
    ) -> None:
        """Make everything below the language, with the values so far.

        Args:
            opened: number of the group that is open.
            preset: the chosen preset.
            path: what stands in the path field; the document's path when not given.
            gpu: GiB of memory that the settings are to fit.
        """
        old = self.widget.children[1:]
        self.fields = {}
        self.language.description = text("form.language")
        main = [self._add(main_field(name, self._state.value)) for name in MAIN]
        self.preset = PresetField(preset, self.preset.changed if preset else None)
        self.preset.on_choice(guarded(self._choose_preset, self._fail))
        self.groups = folded_groups()
        self.groups.observe(guarded(self._unfold, self._fail), "selected_index")
        self.length, self.status = widgets.HTML(), widgets.HTML()
        self.count_button = count_button()
        self.count_button.on_click(guarded(self._press_count, self._fail))
        self.memory = MemoryRow(self._plans, gpu)
        self.memory.plan_button.on_click(guarded(self._press_plan, self._fail))
        self.memory.size.observe(guarded(self._press_plan, self._fail), "value")
        self.memory.apply_button.on_click(guarded(self._press_apply, self._fail))
        self.files = FilesRow(str(self._save_to or "") if path is None else path)
        self.files.load_button.on_click(guarded(self._press_load, self._fail))
        self.files.save_button.on_click(guarded(self._press_save, self._fail))
        self.files.path.observe(guarded(self._name_file, self._fail), "value")
        counted = widgets.HBox([self.count_button, self.length], layout=widgets.Layout(align_items="center"))
        outcome = widgets.VBox([counted, self.memory.box, self.status])
        parts = [grid(main), self.preset.box, self.groups, outcome, self.files.box]
        self.widget.children = (self.widget.children[0], *parts)
        self.groups.selected_index = opened
        for part in old:
            close_all(part)

    def _begin(self) -> None:
        """Check settings that were just loaded; they come from a file or a cell, so their folders can be counted."""
        self._check()
        if self._resolved is not None:
            self._count.trust(self._resolved)
            self._show_counted()

    def _add(self, field: SettingField) -> Any:
        self.fields[field.name] = field
        field.on_edit(guarded(partial(self._edited, field.name), self._fail))
        return field.box

    def _unfold(self, change: Any) -> None:
        """Make the fields of a group when it is opened for the first time: a form of 100 fields is slow to show."""
        number = change["new"]
        if number is None or self.groups.children[number].children:
            return
        with self._lock:
            fields = [
                SettingField(info, self._state.value(info.name), label_width=FOLDED_LABEL_WIDTH)
                for info in folded_infos(FOLDED[number])
            ]
            self.groups.children[number].children = (grid([self._add(field) for field in fields], least="480px"),)
            self._check()

    # Edits -----------------------------------------------------------------------------------------------------

    def _edited(self, name: str, change: Any) -> None:
        with self._lock:
            if self._filling:
                return
            if name == "model_family":
                self.fields["model_flavour"].offer(flavour_options(change["new"]))
                self.fields["pretrained_model_name_or_path"].control.options = published(change["new"])
            self.preset.edited(name)
            self.files.done("")
        self._edit()

    def _choose_preset(self, change: Any) -> None:
        """Fill in what the preset changes; the fields are checked like after any edit."""
        with self._lock:
            if change["new"] not in PRESETS:
                return
            self._collect()
            changes = changes_of(change["new"], self._state.value)
            changes = {name: new for name, new in changes.items() if new != self._state.value(name)}
            self._fill(changes)
            self.preset.explain(changes)
        self._edit.flush()

    def _fill(self, changes: Mapping[str, Any]) -> None:
        """Put values into the form that nobody typed."""
        self._state.changes |= changes
        self._filling = True
        try:
            for name in changes.keys() & self.fields.keys():
                self.fields[name].put(changes[name])
        finally:
            self._filling = False
        self.files.done("")

    def _choose_language(self, change: Any) -> None:
        """Draw everything anew in another language; values stay, also those that are not right yet."""
        with self._lock:
            choose_language(change["new"])
            self._collect()
            self._draw(
                self.groups.selected_index, self.preset.control.value, self.files.path.value, self.memory.size.value
            )
        self._edit.flush()

    def _collect(self) -> None:
        """Take over what stands in edited fields."""
        for name, field in self.fields.items():
            if field.edited or name in self._state.changes:
                self._state.changes[name] = field.value

    def _check(self) -> None:
        """Check everything, and say it: under the fields, and in the lines at the end."""
        with self._lock:
            self._collect()
            chosen, self._resolved, self.problems = self._state.check()
            shown = {}
            for problem in self.problems:
                shown.setdefault(field_name(problem.key), problem)
            for name, field in self.fields.items():
                if name in shown:
                    field.complain(shown[name].message, shown[name].fix)
                else:
                    field.clear()
            self.files.save_button.disabled = self._resolved is None
            self.files.show_unsaved(self._is_saved(chosen), self._saved is not None)
            self.status.value = status_html(self._resolved, len(self.problems), shown, self.fields)
            self._show_length()
            self._show_memory()

    # Length ----------------------------------------------------------------------------------------------------

    @property
    def report(self) -> tk.DatasetReport | None:
        """The decisions about the files of the datasets, where they were counted for the settings as they stand."""
        counted = self._count.of(self._resolved) if self.widget is not None and self._resolved else None
        return counted.report if counted else None

    def _show_counted(self) -> None:
        self._show_length()
        self._show_memory()

    def _show_length(self) -> None:
        """Say how long the run is, if the data was counted for just these settings."""
        with self._lock:
            config = self._resolved
            self.count_button.disabled = config is None
            counted = self._count.of(config) if config else None
            if config and counted:
                found = counted.trouble or html.escape(length(config, counted))
                self.length.value = f"<div style='line-height:1.4'>{found}</div>"
                return
            if config and not self._count.pending(config) and self._count.trusts(config):
                self._count.start(config)
            pending = config is not None and self._count.pending(config)
            words = html.escape(text("form.counting" if pending else "form.not_counted"))
            self.length.value = f"<span style='color:{QUIET_COLOUR}'>{words}</span>"

    def _press_count(self, _: Any) -> None:
        self._edit.flush()
        if self._resolved is None:
            return
        self._count.trust(self._resolved)
        counting = self._count.start(self._resolved)
        if not threads_reach_page():
            counting.join()
        self._show_counted()

    # Memory ----------------------------------------------------------------------------------------------------

    def _show_memory(self) -> None:
        """Say what the run takes of a GPU, if that was planned for just these settings."""
        with self._lock:
            self.memory.show(self._resolved, *self._count.known(self._resolved))

    def _press_plan(self, _: Any) -> None:
        self._edit.flush()
        if self._resolved is not None:
            self.memory.plan(self._resolved, *self._count.known(self._resolved))
        self._show_memory()

    def _press_apply(self, _: Any) -> None:
        """Fill in what makes the run fit."""
        with self._lock:
            if (way := self.memory.way) is None:
                return
            self._collect()
            self._fill(way.settings)
            for name in way.settings:
                self.preset.edited(name)
        self._edit.flush()

    # Files -----------------------------------------------------------------------------------------------------

    def _is_saved(self, chosen: tk.TrainConfig | None) -> bool:
        """Whether the file that the form names holds these settings."""
        return chosen is not None and chosen == self._saved and document_of(self.files.path.value) == self._save_to

    def _name_file(self, _: Any) -> None:
        self.files.done("")
        self._edit()

    def _press_save(self, _: Any) -> None:
        target = document_of(self.files.path.value)
        if target is None:
            self.files.failed(text("form.no_file"))
            return
        self._edit.flush()
        if self._resolved is None:  # the last edit had not been checked yet
            return
        try:
            path = self.save(target)
        except (tk.TunerkitError, OSError) as error:
            self.files.failed(str(error))
            return
        self.files.done(text("form.saved", path=path))

    def _press_load(self, _: Any) -> None:
        """Put the settings of a file in the place of those in the form; a wrong file changes nothing."""
        given = document_of(self.files.path.value)
        if given is None:
            self.files.failed(text("form.no_path"))
            return
        try:
            loaded = tk.load_config(given)
        except (tk.TunerkitError, OSError, ValueError) as error:
            self.files.failed(text("form.not_loaded", message=error))
            return
        with self._lock:
            self._state, self._saved, self._save_to = FormState(loaded, {}), loaded, given
            self._known = content_of(given)
            self._draw(self.groups.selected_index, gpu=self.memory.size.value)
            self._begin()
            self.files.done(text("form.loaded", path=given))

    def _fail(self, message: str) -> None:
        self.status.value = message
