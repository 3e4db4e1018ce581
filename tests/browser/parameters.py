"""A guided notebook with other parameters, as somebody edits its parameters cell."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat


def copy_with(notebook: Path, target: Path, **parameters: object) -> Path:
    """Write a copy of `notebook` whose parameters cell has other values; the rest stays as it is.

    Raises:
        ValueError: the cell has no such parameter.
    """
    document = nbformat.read(notebook, as_version=4)
    (cell,) = (cell for cell in document.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in parameters.items():
        assignment = repr(str(value) if isinstance(value, Path) else value)
        line = rf"(?m)^({name}: \w+ = ).+?(  # @param .+)?$"
        cell.source, found = re.subn(line, lambda match, new=assignment: match[1] + new + (match[2] or ""), cell.source)
        if found != 1:
            raise ValueError(f"{notebook.name} has no parameter {name!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, target)
    return target
