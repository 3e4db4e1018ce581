"""The form in front of the settings."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

import tunerkit as tk
from tunerkit_widgets.form_layout import (
    DATA_FOLDER,
    FOLDED,
    FOLDED_LABEL_WIDTH,
    MAIN,
    flavour_options,
    folded_infos,
    main_field,
    published,
)
from tunerkit_widgets.form_state import FormState
from tunerkit_widgets.guard import ERROR_COLOUR, GOOD_COLOUR, QUIET_COLOUR, guarded
from tunerkit_widgets.setting_field import SettingField, as_text
from tunerkit_widgets.surroundings import headless, show
from tunerkit_widgets.tables import table_html, table_text
from tunerkit_widgets.texts import text


class SetupForm:
    """Settings to look at and change; each edit is checked at once, with the message under its field.

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
        self._save_to = _document(save_to if save_to is not None else project)
        self.fields: dict[str, SettingField] = {}
        """Fields made so far, by setting; a folded group is made when it is opened."""
        self.widget: Any = None
        self.problems: Sequence[Any] = ()
        if headless():
            self._state.resolved()
        else:
            self._build()
            self._check()

    # Results ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> tk.TrainConfig:
        """The settings as they stand in the form, checked and complete.

        Raises:
            ConfigError: every problem at once.
        """
        self._collect()
        return self._state.resolved()

    def save(self, path: str | Path | None = None) -> Path:
        """Write config.json and, beside it, multidatabackend.json; replaced documents are kept once as `.bak`.

        Raises:
            ConfigError: if the settings are not valid.
            ValueError: if neither here nor for the form a file was named.
        """
        self._collect()
        target = _document(path) or self._save_to
        if target is None:
            raise ValueError("name the file to save to: form.save('my-project/config.json')")
        return self._state.save(target)

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
        return table_html(self.rows(), head) + self._notes_html(self.config)

    def __str__(self) -> str:
        notes = [text("form.note", note=str(note)) for note in self.config.notes]
        return "\n".join([table_text(self.rows(), (text("form.setting"), text("form.value"))), *notes])

    def _ipython_display_(self) -> None:
        if self.widget is None or headless():
            show(self.static(), str(self))
            return
        from IPython.display import display

        display(self.widget)

    # Widgets ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.status = widgets.HTML()
        self.saved = widgets.HTML()
        self._guarded_edit = guarded(self._edited, self._fail)
        main = [self._add(main_field(name, self._state.value)) for name in MAIN]
        self.groups = widgets.Accordion(children=[widgets.VBox() for _ in FOLDED], selected_index=None)
        for number, group in enumerate(FOLDED):
            self.groups.set_title(number, text(f"group.{group}"))
        self.groups.observe(guarded(self._unfold, self._fail), "selected_index")
        self.save_button = widgets.Button(description=text("form.save"), icon="save", tooltip=text("form.save_help"))
        self.save_button.on_click(guarded(self._press_save, self._fail))
        bottom = widgets.HBox([self.save_button, self.saved])
        self.widget = widgets.VBox([_grid(main), self.groups, self.status, bottom])

    def _add(self, field: SettingField) -> Any:
        self.fields[field.name] = field
        field.on_edit(self._guarded_edit)
        return field.box

    def _unfold(self, change: Any) -> None:
        """Make the fields of a group when it is opened for the first time: a form of 100 fields is slow to show."""
        number = change["new"]
        if number is None or self.groups.children[number].children:
            return
        fields = [
            SettingField(info, self._state.value(info.name), label_width=FOLDED_LABEL_WIDTH)
            for info in folded_infos(FOLDED[number])
        ]
        self.groups.children[number].children = (_grid([self._add(field) for field in fields], least="480px"),)
        self._check()

    def _edited(self, change: Any) -> None:
        if change["owner"] is self.fields["model_family"].control:
            family = change["new"]
            self.fields["model_flavour"].offer(flavour_options(family))
            self.fields["pretrained_model_name_or_path"].control.options = published(family)
        self.saved.value = ""
        self._check()

    def _collect(self) -> None:
        """Take over what stands in edited fields."""
        for name, field in self.fields.items():
            if field.edited or name in self._state.changes:
                self._state.changes[name] = field.value

    def _check(self) -> None:
        """Check everything, and say it: under the fields, and in the line at the end."""
        self._collect()
        config, self.problems = self._state.check()
        shown = {}
        for problem in self.problems:
            shown.setdefault(_field_name(problem.key), problem)
        for name, field in self.fields.items():
            if name in shown:
                field.complain(shown[name].message, shown[name].fix)
            else:
                field.clear()
        self.save_button.disabled = config is None
        self.status.value = self._good_status(config) if config else self._bad_status(shown)

    def _good_status(self, config: tk.TrainConfig) -> str:
        kind = text("form.lora", rank=config.lora_rank) if config.model_type == "lora" else text("form.full")
        steps = config.max_train_steps or text("form.epochs", count=config.num_train_epochs)
        words = text("form.ready", kind=kind, steps=steps, folder=config.output_path)
        return f"<b style='color:{GOOD_COLOUR}'>✓ {html.escape(words)}</b>{self._notes_html(config)}"

    def _bad_status(self, shown: dict[str, Any]) -> str:
        count = len(self.problems)
        words = text("form.problem") if count == 1 else text("form.problems", count=count)
        # What has no field in sight is written out here.
        others = "".join(f"<li>{html.escape(str(p))}</li>" for name, p in shown.items() if name not in self.fields)
        return f"<b role='alert' style='color:{ERROR_COLOUR}'>✗ {html.escape(words)}</b><ul>{others}</ul>"

    def _notes_html(self, config: tk.TrainConfig) -> str:
        if not config.notes:
            return ""
        items = "".join(f"<li>{html.escape(str(note))}</li>" for note in config.notes)
        title = html.escape(text("form.notes", count=len(config.notes)))
        return f"<details style='color:{QUIET_COLOUR}'><summary>{title}</summary><ul>{items}</ul></details>"

    def _press_save(self, _: Any) -> None:
        if self._save_to is None:
            raise ValueError(text("form.no_file"))
        path = self.save()
        self.saved.value = html.escape(text("form.saved", path=path))

    def _fail(self, message: str) -> None:
        self.status.value = message


def _document(path: str | Path | None) -> Path | None:
    """The settings document that a project means."""
    if path is None:
        return None
    given = Path(path).expanduser().absolute()
    return given / "config.json" if given.is_dir() or given.suffix != ".json" else given


def _field_name(key: str) -> str:
    """The field that shows a problem of the setting `key`."""
    if key == "data_backend_config" or key.endswith("instance_data_dir"):
        return DATA_FOLDER
    return key.partition("[")[0].partition(".")[0] if not key.startswith("datasets") else key


def _grid(children: list[Any], least: str = "380px") -> Any:
    """As many columns of at least this width as the page has room for."""
    columns = f"repeat(auto-fit, minmax({least}, 1fr))"
    return widgets.GridBox(children, layout=widgets.Layout(grid_template_columns=columns, grid_gap="2px 16px"))
