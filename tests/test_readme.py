"""What the README promises: its documents load, its commands and calls exist, its messages look as it shows them."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import tunerkit as tk
import tunerkit_widgets as tw
from tunerkit.cli import parse
from tunerkit.config.tread_rules import routes_of
from tunerkit.reporting.messages import of_step
from tunerkit.training.results import StepResult

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, *words: str) -> list[str]:
    """The code blocks of a language that have all of the words."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block for block in found if all(word in block for word in words)]


def document(*words: str) -> Any:
    """The only JSON document with all of the words."""
    (block,) = blocks("json", *words)
    return json.loads(block)


def test_documents_load_without_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, in the folders that the README names."""
    files = re.findall(r"^`(config/\w+\.json)`:\n\n```json\n(.*?)```", README, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["config/config.json", "config/multidatabackend.json"]
    (tmp_path / "config").mkdir()
    for folder in ("my-clips", "my-masks"):
        (tmp_path / "datasets" / folder).mkdir(parents=True)
    for name, block in files:
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    config = tk.resolve(tk.load_config("config"))
    assert config.notes == []
    assert config.output_dir == tmp_path / "output" / "my-style"
    assert [dataset.instance_data_dir for dataset in config.media_datasets] == [tmp_path / "datasets" / "my-clips"]
    masked = tk.resolve(tk.load_config("config", datasets=document('"my-masks"')))
    assert [dataset.conditioning_ids for dataset in masked.media_datasets] == [("my-masks",)]
    ltx2, kandinsky = document('"ltxvideo2"'), document('"kandinsky5-video"')
    assert tk.resolve(tk.load_config("config", **ltx2, datasets=[document('"auto_split"')])).trains_sound
    for family in (ltx2, kandinsky):
        methods = {**document('"tread_config"'), "crepa_enabled": True}
        assert tk.resolve(tk.load_config("config", **family)).notes == []
        assert tk.resolve(tk.load_config("config", **family, **methods)).notes == []


def test_no_other_document_is_shown() -> None:
    """Each of them is looked at here, by words that it alone has."""
    alone = (
        "model_type",
        "min_frames",
        "ltxvideo2",
        "auto_split",
        "kandinsky5",
        "my-masks",
        "tread_config",
        "grad_norm",
    )
    assert sorted(block for word in alone for block in blocks("json", f'"{word}')) == sorted(blocks("json"))


@pytest.mark.parametrize(("family", "depth"), [("ltxvideo2", 48), ("kandinsky5-video", 32)])
def test_routes_fit_the_published_models(family: str, depth: int) -> None:
    """And leave out the block that is aligned where nothing else is said."""
    aligned = tk.family(family).defaults["crepa_block_index"]
    settings = {**document('"tread_config"'), "crepa_enabled": True, "crepa_block_index": aligned}
    assert routes_of(tk.TrainConfig(model_family=family, **settings), depth)


def test_the_message_of_a_webhook_has_what_is_shown() -> None:
    shown = document("training.status")
    named = {name: shown[name] for name in ("step", "loss", "lr", "grad_norm", "seconds", "epoch")}
    message = of_step(StepResult(**named, parts={}, samples=()).row(), shown["total_steps"])
    assert message.type == shown["type"]
    assert message.text.startswith(shown["text"].removesuffix("..."))
    assert set(shown) - {"type", "run", "time", "text"} <= set(message.facts)


def test_commands_are_understood() -> None:
    lines = re.findall(r"python -m tunerkit ([^#\n&>]+)", "\n".join(blocks("bash")))
    assert len(lines) >= 7
    for words in lines:
        assert parse(words.split()).command == words.split()[0]


def test_calls_in_code_exist() -> None:
    """Every name that code takes of the packages, a trainer and a run."""
    places: dict[str, Any] = {"tk": tk, "tw": tw, "trainer": tk.Trainer, "run": tk.Run}
    code = [block for block in blocks("python") if "%pip" not in block]
    assert len(code) >= 3
    missing, seen = [], 0
    for node in [node for block in code for node in ast.walk(ast.parse(block))]:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in places:
            place = places[node.value.id]
            seen += 1
            if not _has(place, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    inline = re.findall(r"`(tk|tw|trainer)\.(\w+)", README)
    missing += [f"{place}.{name}" for place, name in inline if not _has(places[place], name)]
    assert seen + len(inline) > 25
    assert missing == []


def _has(place: Any, name: str) -> bool:
    """Whether there is such a name, on the class or in what a trainer sets when it is made."""
    if place is tk.Trainer and re.search(rf"self\.{name}\b", inspect.getsource(tk.Trainer.__init__)):
        return True
    return hasattr(place, name)


def test_settings_exist() -> None:
    """As far as their names say that they are settings."""
    names = set(
        re.findall(r"`((?:crepa|scheduled_sampling|validation|eval|webhook|push|hub|lr)_[a-z_]+[a-z])`", README)
    )
    assert len(names) > 20
    known = set(tk.TrainConfig.model_fields) | {"crepa_model"}
    assert names - known == set()


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
