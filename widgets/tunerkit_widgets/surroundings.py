"""Whether somebody is there to click, and showing a result where nobody is."""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol

VARIABLE = "TUNERKIT_HEADLESS"
"""Environment variable that decides by itself: 1 = no widgets, 0 = widgets."""

_OFF_WORDS = frozenset({"0", "false", "no", "off"})


def headless() -> bool:
    """True under papermill, `nbconvert --execute`, nbmake and outside of notebooks: then nothing may wait for a click.

    Programs that execute notebooks tell the kernel that nobody can be asked for input (`allow_stdin` of the request);
    JupyterLab, Colab and VS Code tell it the opposite.
    """
    forced = os.environ.get(VARIABLE, "").strip().lower()
    if forced:
        return forced not in _OFF_WORDS
    kernel = _kernel()
    if kernel is None:
        return True
    request: dict[str, Any] = kernel.get_parent() or {}
    return not request.get("content", {}).get("allow_stdin", True)


def _kernel() -> Any:
    """The Jupyter kernel this runs in, or None; looks only at an IPython that is already loaded."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython(), "kernel", None) if ipython else None


def quiet_libraries() -> None:
    """Switch off the progress bars of the model libraries.

    Where nobody watches they are widgets that a saved notebook keeps as dead text, and papermill stores their state.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def show(html: str, text: str) -> None:
    """Show `html` in a notebook, with `text` beside it for programs that read the notebook; print `text` elsewhere."""
    if _kernel() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/html": html, "text/plain": text}, raw=True)


class View(Protocol):
    """What has a widget where somebody can click, and can be shown without one."""

    widget: Any

    def static(self) -> str: ...


def show_view(view: View) -> None:
    """Show the widget of a view, or what it shows without one where nobody can click."""
    if view.widget is None or headless():
        show(view.static(), str(view))
        return
    from IPython.display import display

    display(view.widget)


def show_widget(widget: Any, plain: str) -> Any:
    """Show a widget in a place that can be given other content later: `handle.update(...)`.

    A widget of ipywidgets 7 shows itself and leaves no such place, so what it would show is shown for it.

    Args:
        widget: the widget.
        plain: what stands there for programs that read the notebook.
    """
    from IPython.display import display

    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return display({"text/plain": plain, "application/vnd.jupyter.widget-view+json": view}, raw=True, display_id=True)


def show_png(png: bytes) -> None:
    """Show a picture in a notebook; outside of one there is no place for it."""
    if _kernel() is not None:
        from IPython.display import Image, display

        display(Image(data=png, format="png"))
