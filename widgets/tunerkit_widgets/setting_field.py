"""One setting in a form: a control, and below it what the setting means or what is wrong with it."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from tunerkit import SettingInfo
from tunerkit_widgets.guard import ERROR_COLOUR, QUIET_COLOUR
from tunerkit_widgets.texts import setting_text, text

LABEL_WIDTH = "140px"
LONG_PATH = 40
"""Letters; a field may hide the end of a longer path, so it is written below as well."""
UNSET = ""
"""Stands for None among the choices of a dropdown, which takes None for "nothing chosen"."""
Options = Sequence[tuple[str, Any]]


class SettingField:
    """A control for a setting.

    Args:
        info: what the setting is.
        value: its value so far.
        label: its name on the page.
        options: (label, value) pairs to choose from.
        suggestions: texts offered for a free text.
        placeholder: shown while the field is empty.
        lines: a text of more lines.
        label_width: width of the label, as CSS has it.
    """

    def __init__(
        self,
        info: SettingInfo,
        value: Any,
        *,
        label: str | None = None,
        options: Options | None = None,
        suggestions: Sequence[str] = (),
        placeholder: str = "",
        lines: bool = False,
        label_width: str = LABEL_WIDTH,
    ) -> None:
        self.name, self.info = info.name, info
        self._label_width = label_width
        self._options = options if options is not None else _options(info)
        self.control: Any = self._control(value, label or info.name.replace("_", " "), suggestions, placeholder, lines)
        self.message = widgets.HTML()
        self.box: Any = widgets.VBox([self.control, self.message])
        self._start = self.control.value
        self.clear()

    def _control(self, value: Any, label: str, suggestions: Sequence[str], placeholder: str, lines: bool) -> Any:
        shared: dict[str, Any] = {
            "description": label,
            "style": {"description_width": self._label_width},
            "layout": widgets.Layout(width="auto"),
        }
        if self._options:
            chosen = UNSET if value is None else value
            return widgets.Dropdown(options=_with(self._options, chosen), value=chosen, **shared)
        if self.info.control == "flag":
            return widgets.Checkbox(value=bool(value), indent=True, **shared)
        if self.info.control == "integer" and not self.info.optional and isinstance(value, int):
            return widgets.IntText(value=value, **shared)
        shared |= {
            "value": as_text(value),
            "placeholder": placeholder or (text("field.unset") if self.info.optional else ""),
        }
        if lines:
            return widgets.Textarea(rows=2, **shared)
        if suggestions:
            return widgets.Combobox(options=list(suggestions), ensure_option=False, **shared)
        return widgets.Text(**shared)

    @property
    def value(self) -> Any:
        """What stands in the field, as the settings read it; an empty field is None where a setting may be unset."""
        value = self.control.value
        if isinstance(value, str) and not value.strip() and self.info.optional:
            return None
        return value

    @property
    def edited(self) -> bool:
        """Whether it differs from what the form started with."""
        return self.control.value != self._start

    def put(self, value: Any) -> None:
        """Fill in a value of the setting, as an edit would."""
        if self._options:
            chosen = UNSET if value is None else value
            self.control.options = _with(self._options, chosen)
            self.control.value = chosen
        elif isinstance(self.control, (widgets.Checkbox, widgets.IntText)):
            self.control.value = value
        else:
            self.control.value = as_text(value)

    def offer(self, options: Options) -> None:
        """Other choices; the first one is taken when the chosen one is not among them."""
        value = self.control.value
        self._options = options
        self.control.options = list(options)
        self.control.value = value if value in [choice for _, choice in options] else options[0][1]

    def on_edit(self, action: Callable[[Any], None]) -> None:
        """Call `action` with every edit."""
        self.control.observe(action, "value")

    def complain(self, message: str, fix: str) -> None:
        """Show what is wrong, instead of the description."""
        words = html.escape(text("field.problem", message=message, fix=fix))
        self._say(f"<span role='alert' style='color:{ERROR_COLOUR}'>✗ {words}</span>")

    def clear(self) -> None:
        """Show what the setting means."""
        value = self.control.value
        path = isinstance(value, str) and value.startswith(("/", "~", ".")) and len(value) > LONG_PATH
        words = html.escape(setting_text(self.info)) + (
            f"<br><code style='font-size:inherit'>{html.escape(value)}</code>" if path else ""
        )
        self._say(f"<small style='color:{QUIET_COLOUR}'>{words}</small>")

    def _say(self, content: str) -> None:
        markup = below(content, self._label_width)
        if self.message.value != markup:  # a message that stays need not be sent again
            self.message.value = markup


def below(content: str, label_width: str) -> str:
    """HTML to stand below a control with a label of this width."""
    return (
        f"<div style='margin:0 0 6px {label_width};padding-left:8px;line-height:1.3;overflow-wrap:anywhere'>"
        f"{content}</div>"
    )


def as_text(value: Any) -> str:
    """A value as one writes it in a field; reading it gives the value again."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value)


def _options(info: SettingInfo) -> Options:
    """The choices of a setting, with an entry for "not set" where that is one."""
    unset = [(text("field.unset"), UNSET)] if info.optional else []
    if info.control == "choice":
        return [*unset, *((str(choice), choice) for choice in info.choices)]
    if info.control == "flag" and info.optional:
        return [*unset, (text("field.yes"), True), (text("field.no"), False)]
    return []


def _with(options: Options, value: Any) -> list[tuple[str, Any]]:
    """The options, and the value when it is none of them: it is shown, and checked like all others."""
    known = any(choice == value for _, choice in options)
    return [*options] if known else [*options, (as_text(value), value)]
