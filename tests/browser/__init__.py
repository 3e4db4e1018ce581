"""Notebooks in a real JupyterLab, in a real browser: what somebody in front of the page sees and does."""

from .chromium import Browser, missing
from .lab_notebook import LabNotebook, Video
from .lab_server import LabServer
from .lab_widgets import Dashboard, Gallery, Widget, wait_until
from .parameters import copy_with

__all__ = [
    "Browser",
    "Dashboard",
    "Gallery",
    "LabNotebook",
    "LabServer",
    "Video",
    "Widget",
    "copy_with",
    "missing",
    "wait_until",
]
