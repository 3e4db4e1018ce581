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

    report_to: str | list[str] = _tracking("none", "Services that follow the run.")
    tracker_project_name: str | None = _tracking(None, "Project name at those services.")
    tracker_run_name: str | None = _tracking(None, "Run name at those services.")
    tracker_image_layout: str | None = _tracking(None, "How rendered videos are laid out there.")
    webhook_config: str | dict[str, Any] | list[Any] | None = _tracking(None, "Address that is sent events.")
    webhook_reporting_interval: int | None = _tracking(None, "Steps between those events.", ge=0)
    push_to_hub: bool = _tracking(False, "Upload the result to the hub.")
    push_checkpoints_to_hub: bool = _tracking(False, "Upload every checkpoint.")
    push_to_hub_background: bool = _tracking(False, "Upload while training goes on.")
    hub_model_id: str | None = _tracking(None, "Repository to upload to.")
    model_card_private: bool = _tracking(False, "Make that repository private.")
    model_card_note: str | None = _tracking(None, "Text of the model card.")
    model_card_safe_for_work: bool = _tracking(False, "Mark the model as safe for all audiences.")
