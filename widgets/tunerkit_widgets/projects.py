"""Which settings a guided notebook starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tunerkit as tk
from tunerkit_widgets.form_layout import DATA_FOLDER
from tunerkit_widgets.form_state import clips_dataset
from tunerkit_widgets.setup_form import SetupForm

OWN = frozenset({DATA_FOLDER, "pretrained_model_name_or_path", "ltx2_checkpoint_filename"})
"""Who chooses one of these does not want the demo."""
DEMO_FOLDER = "demo-project"
SHORTEST_CLIP = 17
"""Frames; shorter clips of a new project are left out."""
FIRST_RUN_STEPS = 60
"""A result in minutes, before anybody waits for hours."""
VALIDATION_STEPS = 500


def guided_form(project: str = "", *, family: str, **parameters: Any) -> SetupForm:
    """The form of a guided notebook.

    With a project, its settings. Without one, but with own clips or an own model: a new project in `<family>-project`,
    or what was saved there.
    With nothing chosen: the family's demo, made below `demo-project` if it is not there.

    Args:
        project: a `config.json`, or the folder that holds one; empty as above.
        family: model family of a new project and of the demo.
        parameters: settings (and `data_folder`); those that are "", 0 or None are left as the project has them.

    Raises:
        ConfigError: as `SetupForm`.
    """
    chosen = {name: value for name, value in parameters.items() if value not in ("", 0, None)}
    if project:
        return SetupForm(project, **chosen)
    if not OWN.isdisjoint(chosen):
        folder = Path(f"{family}-project").absolute()
        if (folder / "config.json").is_file():  # saved from the form before
            return SetupForm(folder, **chosen)
        config = new_project(folder, family, chosen.get("model_flavour"))
        return SetupForm(config=config, save_to=folder / "config.json", **chosen)
    return SetupForm(_demo(family, chosen.get("model_flavour")), **chosen)


def _demo(family: str, flavour: str | None) -> Path:
    """The demo's config.json, in a folder of its own: another model's run must not find its checkpoints."""
    if flavour is None:
        return tk.demo.create(Path(DEMO_FOLDER, family), family=family)
    return tk.demo.create(Path(DEMO_FOLDER, f"{family}-{flavour}"), family=family, model_flavour=flavour)


def new_project(folder: Path, family: str, flavour: str | None = None) -> tk.TrainConfig:
    """Settings for a first run of a family's published model on own clips; nothing is written yet.

    Args:
        folder: the project's folder; results go to `output` in it.
        family: the model family.
        flavour: whose number of frames clips have at most; the family's default when not given or not known.
    """
    model = tk.family(family)
    known = model.flavour(flavour or "") or model.default_flavour
    longest = int(model.defaults_for(known)["validation_num_video_frames"])
    frames = {"num_frames": longest, "min_frames": min(longest, model.legal_frames(SHORTEST_CLIP))}
    # Clips without sound stay in, as silent ones: the table of clips says which they are.
    sound = {} if model.sound is None else {"audio": {"auto_split": True, "allow_zero_audio": True}}
    return tk.TrainConfig(
        model_family=model.name,
        output_dir=folder / "output",
        max_train_steps=FIRST_RUN_STEPS,
        validation_step_interval=VALIDATION_STEPS,
        datasets=[clips_dataset(None, video=frames, **sound)],
    )
