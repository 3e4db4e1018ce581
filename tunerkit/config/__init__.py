"""What the user wants: typed, checked settings, and the JSON documents they come from."""

from __future__ import annotations

from tunerkit.config.dataset_document import AudioSettings, DatasetConfig, VideoSettings
from tunerkit.config.describe import SettingInfo, describe
from tunerkit.config.documents import load_dataset_document
from tunerkit.config.prompt_library import load_prompt_library
from tunerkit.config.settings import TrainConfig

__all__ = [
    "AudioSettings",
    "DatasetConfig",
    "SettingInfo",
    "TrainConfig",
    "VideoSettings",
    "describe",
    "load_dataset_document",
    "load_prompt_library",
]
