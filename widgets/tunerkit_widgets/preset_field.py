"""The choice of a preset, and below it what the chosen one means."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from tunerkit_widgets.form_presets import AS_SET, OWN, PRESETS, Saving, settings_of
from tunerkit_widgets.guard import QUIET_COLOUR
from tunerkit_widgets.setting_field import LABEL_WIDTH, as_text, below
from tunerkit_widgets.texts import text


class PresetField:
    """A list of presets.

    Args:
        chosen: the one to begin with.
        changed: what it set when it was chosen, by setting.
    """

    def __init__(self, chosen: str = AS_SET, changed: Mapping[str, Any] | None = None) -> None:
        names = [AS_SET, *PRESETS, OWN]
        titles = [
            *(text("preset.as_set"), text("preset.light"), text("preset.balanced"), text("preset.aggressive")),
            text("preset.own"),
        ]
        self.control: Any = widgets.Dropdown(
            description=text("preset.label"),
            options=list(zip(titles, names, strict=True)),
            value=chosen,
            style={"description_width": LABEL_WIDTH},
            layout=widgets.Layout(width="auto", max_width="560px"),
        )
        self.message = widgets.HTML()
        self.box: Any = widgets.VBox([self.control, self.message])
        self.explain(changed or {})

    def on_choice(self, action: Callable[[Any], None]) -> None:
        """Call `action` with every choice."""
        self.control.observe(action, "value")

    def edited(self, name: str) -> None:
        """Somebody edited a setting: if the chosen preset decides about it, it is no longer that preset."""
        if name in settings_of(self.control.value):
            self.control.value = OWN
            self.explain({})

    def explain(self, changed: Mapping[str, Any]) -> None:
        """Say what the chosen preset has changed, and what each of its settings means and costs."""
        self.changed = changed
        chosen = self.control.value
        if chosen not in PRESETS:
            content = html.escape(text("preset.own_help" if chosen == OWN else "preset.help"))
        else:
            used = [saving for saving in PRESETS[chosen] if changed.keys() & set(saving.settings)]
            left = settings_of(chosen) - {name for saving in used for name in saving.settings}
            content = _list(used, changed) if used else ""
            content += f"{html.escape(text('preset.unchanged'))} {_names(sorted(left))}" if left else ""
        self.message.value = below(f"<small style='color:{QUIET_COLOUR}'>{content}</small>", LABEL_WIDTH)


def _list(savings: Sequence[Saving], changed: Mapping[str, Any]) -> str:
    """What was changed, with its meaning."""
    items = []
    for saving in savings:
        new = [f"{name} = {as_text(changed[name])}" for name in saving.settings if name in changed]
        items.append(f"<li><b>{_names(new)}</b>: {html.escape(text(saving.meaning))}</li>")
    title = html.escape(text("preset.changed", count=len(changed)))
    return f"{title}<ul style='margin:2px 0;padding-left:18px'>{''.join(items)}</ul>"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"<code style='font-size:inherit'>{html.escape(name)}</code>" for name in names)
