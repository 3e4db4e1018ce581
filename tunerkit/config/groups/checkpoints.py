"""Where the run writes, what it keeps, and who is told."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="checkpoints")
_tracking = partial(setting, group="tracking")


class CheckpointSettings(Settings):
    """Output folder, checkpoints and resuming."""

    output_dir: Path | None = _setting(None, "Folder of everything the run writes.")
    checkpoint_step_interval: int = _setting(500, "Steps between checkpoints.", ge=1)
    checkpoint_epoch_interval: int | None = _setting(None, "Epochs between checkpoints.", ge=0)
    checkpoints_total_limit: int = _setting(5, "Newest checkpoints that are kept; 0 = all.", ge=0)
    checkpoints_rolling_interval: int | None = _setting(
        None, "Steps between checkpoints that replace each other.", ge=0
    )
    resume_from_checkpoint: str | None = _setting(
        "latest", "Checkpoint to go on from: latest, a folder, or nothing to start afresh."
    )
    disk_low_threshold: str | None = _setting(None, "Free disk space below which disk_low_action is taken.")
    disk_low_action: str | None = _setting(None, "What to do when the disk is nearly full.")


class TrackingSettings(Settings):
    """Services that are told about the run."""

    report_to: str | list[str] = _tracking(
        "none", "Trackers that follow the run: wandb, tensorboard, trackio, a list of them, all, or none."
    )
    tracker_project_name: str | None = _tracking(None, "Project of the run at the trackers; tunerkit when not set.")
    tracker_run_name: str | None = _tracking(
        None, "Name of the run at the trackers; that of its output folder when not set."
    )
    tracker_image_layout: str | None = _tracking(None, "How rendered videos are laid out there.")
    webhook_config: str | dict[str, Any] | list[Any] | None = _tracking(
        None, "Address that is sent messages about the run, as text or {'url', ...}; or a list of them."
    )
    webhook_reporting_interval: int | None = _tracking(
        None,
        "Steps between reports of the loss to that address; about a hundred in the run when not set, 0 = never.",
        ge=0,
    )
    push_to_hub: bool = _tracking(False, "Upload the finished adapter or model to the hub, with a model card.")
    push_checkpoints_to_hub: bool = _tracking(False, "Upload the weights of every checkpoint as well.")
    push_to_hub_background: bool = _tracking(False, "Upload while training goes on.")
    hub_model_id: str | None = _tracking(
        None, "Repository to upload to: owner/name, or a name of your own account; that of the run when not set."
    )
    model_card_private: bool = _tracking(False, "Make a new repository private.")
    model_card_note: str | None = _tracking(None, "Words of your own in the model card.")
    model_card_safe_for_work: bool = _tracking(False, "Leave out the mark for unsafe content from the model card.")
