"""The settings of a run as they may be shown to others: no folder of this machine, no address with a secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig

SECRET = ("webhook_config",)
"""Whoever knows such an address can write to it."""


def shared_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings that say something, the datasets included, as JSON has them; of a path only the last part."""
    values = {key: value for key, value in config.model_dump().items() if key not in SECRET}
    return {key: _without_folders(value) for key, value in values.items() if value not in (None, "", [], {})}


def flat_settings(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """The same with one plain value per setting, as trackers take them; what has parts is JSON text."""
    plain = (bool, int, float, str)
    return {
        key: value if isinstance(value, plain) else json.dumps(value) for key, value in shared_settings(config).items()
    }


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_folders(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value)):
        return Path(value).name
    return value
