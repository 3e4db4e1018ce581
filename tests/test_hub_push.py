"""Uploading to the hub: what stands in the way is known before anything is loaded, and a failure costs nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import ModelCard, errors
from safetensors import safe_open

import tunerkit as tk
from tunerkit import families
from tunerkit.cli import main
from tunerkit.reporting import hub, hub_files
from tunerkit.reporting.hub import HubTarget, hub_target
from tunerkit.reporting.model_card import UNSAFE, Sample, base_model, model_card
from tunerkit.running.results import read_videos

MakeConfig = Callable[..., tk.TrainConfig]
LORA = "pytorch_lora_weights.safetensors"
FEW = {"max_train_steps": 2, "checkpoint_step_interval": 1}
VALIDATION = {
    "validation_disable": False, "validation_resolution": "64x64", "validation_num_video_frames": 5,
    "validation_num_inference_steps": 1, "validation_prompt": "a fox | in snow", "user_prompt_library": None,
    "validation_step_interval": 2,
}  # fmt: skip


def http_error(status: int) -> errors.HfHubHTTPError:
    request = httpx.Request("POST", "https://huggingface.co/api")
    return errors.HfHubHTTPError("no", response=httpx.Response(status, request=request))  # pyright: ignore[reportArgumentType]


class FakeHub:
    """huggingface_hub.HfApi, keeping what is uploaded in folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.account: Any = {"name": "kit", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}
        self.failures: list[Exception] = []
        self.public: set[str] = set()
        self.made: list[tuple[str, Any]] = []
        self.uploads: list[tuple[str, Path]] = []
        self.open = threading.Event()
        self.open.set()

    def whoami(self) -> Any:
        if isinstance(self.account, Exception):
            raise self.account
        return self.account

    def model_info(self, repo_id: str) -> Any:
        if repo_id not in self.public:
            raise http_error(404)
        return SimpleNamespace(private=False)

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        self.made.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert self.open.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        copy = self.folder / str(len(self.uploads))
        shutil.copytree(folder_path, copy)
        self.uploads.append((f"{repo_id}: {commit_message}", copy))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The hub, with a token on this machine; tries follow each other at once."""
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
    return fake


def train(config: tk.TrainConfig) -> tk.Trainer:
    trainer = tk.Trainer(config).prepare()
    try:
        list(trainer.steps(evaluate=True))
    finally:
        trainer.close()
    return trainer


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def keys(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def assert_links_lead_somewhere(folder: Path, card: ModelCard) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", card.text)
    targets += [entry["output"]["url"] for entry in card.data.to_dict().get("widget", [])]
    assert targets
    assert [target for target in targets if not (folder / target).is_file()] == []


def test_a_run_is_uploaded_with_its_page(fake: FakeHub, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        push_to_hub=True, push_checkpoints_to_hub=True, hub_model_id="fox-style", model_card_private=True,
        model_card_note="Made from *our own* clips.", webhook_config={"url": "http://127.0.0.1:9/secret"},
        **FEW, **VALIDATION, **{"datasets.0.instance_prompt": "f0x style"},
    )  # fmt: skip
    train(config)
    assert fake.made == [("kit/fox-style", True)] * 3
    words = [text for text, _ in fake.uploads]
    assert words == [f"kit/fox-style: Upload {what}" for what in ("checkpoint-1", "checkpoint-2", "the result")]

    _, first = fake.uploads[0]
    weights = {LORA, hub_files.COMFYUI_FILE}
    assert {f"checkpoint-1/{name}" for name in weights} < files(first)
    assert not files(first) & weights
    _, result = fake.uploads[-1]
    samples = {name for name in files(result) if name.startswith("samples/")}
    assert files(result) == {"README.md", "config.json", *weights, *samples}
    assert (result / LORA).read_bytes() == (config.output_path / LORA).read_bytes()
    assert {key.partition(".")[0] for key in keys(result / hub_files.COMFYUI_FILE)} == {"diffusion_model"}
    assert len(keys(result / hub_files.COMFYUI_FILE)) == len(keys(result / LORA))
    (video,) = read_videos(config.output_path, 2)
    assert video.comparison is not None
    assert samples == {f"samples/{video.path.name}", f"samples/{video.comparison.name}"}

    settings = (result / "config.json").read_text()
    assert json.loads(settings)["learning_rate"] == config.learning_rate
    card = ModelCard.load(result / "README.md")
    for hidden in ("secret", str(tmp_path)):
        assert hidden not in settings
        assert hidden not in card.content
    data = card.data.to_dict()
    assert data["base_model"] == "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"
    assert (data["base_model_relation"], data["pipeline_tag"], data["library_name"]) == (
        "adapter", "text-to-video", "diffusers"
    )  # fmt: skip
    assert {"lora", "sanavideo", "tunerkit", UNSAFE} <= set(data["tags"])
    assert data["instance_prompt"] == "f0x style"
    assert data["widget"] == [{"text": "a fox | in snow", "output": {"url": f"samples/{video.path.name}"}}]
    assert_links_lead_somewhere(result, card)
    for words_of_the_page in (
        "Made from *our own* clips.", "a fox \\| in snow", "- f0x style", 'load_lora_weights("kit/fox-style")',
        "| steps | 2 |", "loss at fixed noise, last", "SanaVideoPipeline",
    ):  # fmt: skip
        assert words_of_the_page in card.text
    assert not list(config.output_path.glob(".hub-*"))  # what was gathered is gone


def test_a_failed_upload_keeps_everything_and_says_how_to_do_it_later(
    fake: FakeHub, make_config: MakeConfig, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failures = [http_error(503), OSError("cut off"), http_error(502)]
    config = make_config(push_to_hub=True, hub_model_id="lab/fox", model_card_safe_for_work=True, **FEW)
    trainer = train(config)
    assert trainer.global_step == 2
    assert (config.output_path / LORA).is_file()
    assert tk.Run(config.output_path).status.state == "done"
    assert not fake.uploads
    (told,) = [record.message for record in caplog.records if "upload" in record.message]
    assert "answers with status 502" in told
    assert told.endswith(f"Fix: python -m tunerkit push {config.output_path}")

    fake.failures = [http_error(503), OSError("cut off")]  # the third try succeeds
    assert main(["push", str(config.output_path), "model_card_note=later"]) == 0
    assert "https://huggingface.co/lab/fox" in capsys.readouterr().out
    ((_, result),) = fake.uploads
    card = ModelCard.load(result / "README.md")
    assert "later" in card.text
    assert UNSAFE not in card.data.to_dict()["tags"]

    fake.account = errors.LocalTokenNotFoundError("none")
    assert main(["push", str(config.output_path)]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_what_only_repeats_itself_is_not_tried_again(fake: FakeHub, tmp_path: Path) -> None:
    fake.failures = [http_error(403), http_error(503)]
    with pytest.raises(tk.TunerkitError, match="refuses the token"):
        hub._sent(HubTarget("kit/fox", False), tmp_path, "words")
    assert len(fake.failures) == 1


def test_uploads_in_the_background_wait_for_nobody(fake: FakeHub, make_config: MakeConfig) -> None:
    """A checkpoint that is pruned before its turn is uploaded all the same."""
    config = make_config(
        push_to_hub=True, push_checkpoints_to_hub=True, push_to_hub_background=True, max_train_steps=3,
        checkpoint_step_interval=1, checkpoints_total_limit=1,
    )  # fmt: skip
    fake.open.clear()
    trainer = tk.Trainer(config).prepare()
    assert [result.step for result in trainer.steps()] == [1, 2, 3]
    assert not fake.uploads
    assert not (config.output_path / "checkpoint-1").exists()
    threading.Timer(0.3, fake.open.set).start()
    trainer.close()
    words = [text.partition(": Upload ")[2] for text, _ in fake.uploads]
    assert words == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "the result"]
    assert f"checkpoint-1/{LORA}" in files(fake.uploads[0][1])
    assert fake.made[0][0] == f"kit/{config.output_path.parent.name}"


def test_a_full_fine_tuning_and_a_run_that_was_stopped(fake: FakeHub, make_config: MakeConfig) -> None:
    config = make_config(
        push_to_hub=True, model_type="full", learning_rate=1e-6, max_train_steps=2, checkpoint_step_interval=1
    )
    trainer = tk.Trainer(config).prepare()
    list(trainer.steps(1))
    trainer.close()
    assert not fake.uploads
    hub.push(config)
    list(tk.Trainer(config).prepare().steps())
    for _, folder in fake.uploads:
        assert {name for name in files(folder) if name.endswith(".safetensors")} == {
            "transformer/diffusion_pytorch_model.safetensors"
        }
    weights = [(folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes() for _, folder in fake.uploads]
    assert (
        weights[0] == (config.output_path / "checkpoint-1/transformer/diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert weights[1] == (config.output_path / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    assert weights[0] != weights[1]
    steps = [re.search(r"\| steps \| (\d) \|", (folder / "README.md").read_text()) for _, folder in fake.uploads]
    assert [match and match[1] for match in steps] == ["1", "2"]
    data = ModelCard.load(fake.uploads[1][1] / "README.md").data.to_dict()
    assert data["base_model_relation"] == "finetune"
    assert "full-finetune" in data["tags"]


ACCOUNT = {"name": "kit", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}


@pytest.mark.parametrize(
    ("account", "settings", "key", "words"),
    [
        (errors.LocalTokenNotFoundError("none"), {}, "push_to_hub", "hf auth login"),
        (http_error(401), {}, "push_to_hub", "refuses the token"),
        (http_error(500), {}, "push_to_hub", "answers with status 500"),
        (errors.OfflineModeIsEnabled("off"), {}, "push_to_hub", "HF_HUB_OFFLINE"),
        (httpx.ConnectError("no route"), {}, "push_to_hub", "cannot be reached: no route"),
        ({**ACCOUNT, "auth": {"accessToken": {"role": "read"}}}, {}, "push_to_hub", "may only read"),
        (ACCOUNT, {"hub_model_id": "other/fox"}, "hub_model_id", "write one of kit, lab"),
        (ACCOUNT, {"hub_model_id": "lab/seen", "model_card_private": True}, "model_card_private", "is public"),
    ],
)
def test_the_hub_is_asked_before_anything_is_loaded(
    fake: FakeHub, make_config: MakeConfig, account: Any, settings: dict[str, Any], key: str, words: str
) -> None:
    fake.account, fake.public = account, {"lab/seen"}
    config = make_config(push_to_hub=True, **settings)
    trainer = tk.Trainer(config)
    with pytest.raises(tk.ConfigError) as raised:
        trainer.prepare()
    (problem,) = raised.value.problems
    assert problem.key == key
    assert words in str(problem)
    run = tk.Run(config.output_path)
    assert run.status.state == "failed"
    assert not (config.output_path / "config.json").exists()
    assert [event["kind"] for event in run.events()] == ["state", "error"]


def test_names_and_rights_that_are_right(fake: FakeHub, make_config: MakeConfig) -> None:
    def target(**settings: Any) -> HubTarget | None:
        return hub_target(make_config(push_to_hub=True, **settings))[0]

    assert target(hub_model_id="lab/fox") == HubTarget("lab/fox", False)
    assert target(hub_model_id="fox", model_card_private=True) == HubTarget("kit/fox", True)
    assert target(tracker_project_name="my style!") == HubTarget("kit/my_style", False)
    fake.account = {**ACCOUNT, "auth": {"accessToken": {"role": "fineGrained"}}}
    assert target(hub_model_id="other/fox") == HubTarget("other/fox", False)  # only the hub knows


def test_settings_of_the_hub_are_checked(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(tk.ConfigError, match=r"push_checkpoints_to_hub.*hf auth login"):
        tk.Trainer(make_config(push_checkpoints_to_hub=True))
    for name in ("a/b/c", "fox style", "https://huggingface.co/kit/fox", "-fox"):
        with pytest.raises(tk.ConfigError, match="hub_model_id"):
            tk.TrainConfig(hub_model_id=name)
    noted = {note.key for note in tk.TrainConfig(model_card_private=True, push_to_hub_background=True).notes}
    assert noted == {"model_card_private", "push_to_hub_background"}


def test_nothing_to_upload(fake: FakeHub, make_config: MakeConfig) -> None:
    config = make_config()
    config.output_path.mkdir(parents=True, exist_ok=True)
    with pytest.raises(tk.TunerkitError, match="holds no weights yet"):
        hub.push(config)
    assert not fake.made
    assert not list(config.output_path.glob(".hub-*"))


@pytest.mark.parametrize("family", ["sanavideo", "kandinsky5-video", "ltxvideo2"])
def test_pages_of_all_families(family: str, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    dataset = {"id": "a|b", "instance_data_dir": str(clips), "video": {"is_i2v": family == "sanavideo"}}
    config = tk.resolve(
        tk.TrainConfig(
            model_family=family,
            output_dir=tmp_path / "run",
            max_train_steps=1,
            datasets=[dataset],
            model_card_note="---\nnot: metadata\n---",
        )
    )
    sample = Sample("samples/x.mp4", 'he said: "<script>" \n# [now](x)', 7)
    card = ModelCard(model_card(config, "kit/fox", {}, [sample], comfyui="comfy.safetensors"))
    data = card.data.to_dict()
    known = families.get(family)
    assert data["base_model"] == base_model(config, known) == known.flavours[str(config.model_flavour)].repo
    assert data["pipeline_tag"] == ("image-to-video" if family == "sanavideo" else "text-to-video")
    assert data["widget"][0]["text"] == sample.prompt
    assert "not" not in data
    (row,) = [line for line in card.text.splitlines() if "samples/x.mp4" in line]
    assert row.startswith('| he said: "&lt;script&gt;" # \\[now\\](x) | 7 |')
    assert known.pipeline_class().__name__ in card.text
    assert "comfy.safetensors" in card.text


# Mirrors -------------------------------------------------------------------------------------------------------


def test_a_mirror_named_too_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def notes() -> list[str]:
        return [str(note) for note in tk.TrainConfig().notes if note.key == "HF_ENDPOINT"]

    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert notes() == []
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com/")
    (note,) = notes()
    assert "https://hf-mirror.com" in note
    assert constants.ENDPOINT in note
    monkeypatch.setattr(constants, "ENDPOINT", "https://hf-mirror.com")
    assert notes() == []
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants")
    assert notes() == []  # not imported yet: it will be read


def test_a_mirror_is_no_setting() -> None:
    with pytest.raises(tk.ConfigError, match="environment"):
        tk.TrainConfig(HF_ENDPOINT="https://hf-mirror.com")
