"""Writes the guided notebooks from one source, so that they cannot drift apart.

    python notebooks/source/build.py          write them
    python notebooks/source/build.py --check  say which are not as the source has them

The code stands once, in `cells.py.jinja`; the prose once for each language, in `<text>.<language>.md.jinja`, where
`[[name]]` is the place of a code cell. English notebooks lie in `notebooks/`, others in `notebooks/<language>/`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import nbformat

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parent
ENGLISH = "en"
LANGUAGES = {ENGLISH: "English", "es": "Español", "hi": "हिन्दी", "ja": "日本語"}
FAMILIES = {"sana_video": "sanavideo", "ltx2": "ltxvideo2", "kandinsky5": "kandinsky5-video"}
TEXTS = {**dict.fromkeys(FAMILIES, "guided"), "sweep": "sweep"}
"""Notebook -> the prose it is made of."""
PARAMETERS = ("parameters", "sweep_parameters")
_CELL = re.compile(r"^# %% (\w+)\n", re.MULTILINE)
_PLACE = re.compile(r"^\[\[(\w+)\]\]$", re.MULTILINE)
_BLANK = re.compile(r"\n{3,}")


def build(name: str, language: str) -> str:
    """The notebook as JSON text.

    Raises:
        jinja2.UndefinedError, KeyError: the source uses what is not there.
    """
    values = {
        "notebook": name,
        "family": FAMILIES.get(name),
        "language": "" if language == ENGLISH else language,
        "repository": repository(),
        "links": links(name, language),
    }
    code = dict(_pairs(_CELL.split(_rendered("cells.py.jinja", values))[1:]))
    pieces = _PLACE.split(_rendered(_prose(name, language).name, values))
    cells: list[Any] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            cells.append(nbformat.v4.new_code_cell(code[piece].strip()))
            cells[-1].metadata |= {"tags": ["parameters"]} if piece in PARAMETERS else {}
        elif text := _BLANK.sub("\n\n", piece).strip():
            cells.append(nbformat.v4.new_markdown_cell(text))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02}"  # as drawn by chance they would differ with every build
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def targets() -> dict[Path, tuple[str, str]]:
    """File -> name and language of every notebook that there is prose for."""
    return {
        _folder(language) / f"{name}.ipynb": (name, language)
        for language in LANGUAGES
        for name in TEXTS
        if _prose(name, language).is_file()
    }


def repository() -> str:
    """The address of the project's repository."""
    project = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def links(name: str, language: str) -> str:
    """The line below the title: this notebook on Colab, and in the other languages. No picture, which would need the
    internet."""
    path = (_folder(language) / f"{name}.ipynb").relative_to(NOTEBOOKS.parent)
    place = repository().removeprefix("https://github.com/")
    words = [f"[Open in Colab](https://colab.research.google.com/github/{place}/blob/main/{path})"]
    above = "" if language == ENGLISH else "../"
    for other, title in LANGUAGES.items():
        folder = "" if other == ENGLISH else f"{other}/"
        if other != language and _prose(name, other).is_file():
            words.append(f"[{title}]({above}{folder}{name}.ipynb)")
    return " · ".join(words)


def _prose(name: str, language: str) -> Path:
    return HERE / f"{TEXTS[name]}.{language}.md.jinja"


def _folder(language: str) -> Path:
    return NOTEBOOKS if language == ENGLISH else NOTEBOOKS / language


def _rendered(template: str, values: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template(template).render(values)


def _pairs(pieces: list[str]) -> list[tuple[str, str]]:
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def main(arguments: list[str]) -> int:
    """Write or check all notebooks; the exit status."""
    outdated = []
    for path, (name, language) in targets().items():
        text = build(name, language)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(path)
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    word = "not as their source has them" if "--check" in arguments else "written"
    print(*(path.relative_to(NOTEBOOKS) for path in outdated), f"{len(outdated)} {word}", sep="\n")
    return int("--check" in arguments and bool(outdated))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
