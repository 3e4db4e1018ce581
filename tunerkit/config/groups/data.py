"""Sizes, caches and encoding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="data")
ResolutionType = Literal["pixel", "area", "pixel_area", "model"]


class DataSettings(Settings):
    """What all datasets share. A dataset's own value, where it has one, counts more."""

    resolution: float | None = _setting(
        None, "Size of datasets that name none; the family's own sizes when not set.", gt=0, le=16384
    )
    resolution_type: ResolutionType | None = _setting(
        None,
        "Meaning of resolution: shorter edge (pixel), megapixels (area), edge of a square of the same area "
        "(pixel_area), or the family's own sizes (model).",
    )
    cache_dir: Path | None = _setting(None, "Folder of the caches; 'cache' inside output_dir when not set.")
    vae_batch_size: int = _setting(1, "Clips encoded at a time.", ge=1)
    text_encoder_batch_size: int = _setting(1, "Captions encoded at a time.", ge=1)
    write_batch_size: int = _setting(128, "Accepted for compatibility: every cache file is written at once.", ge=1)
    compress_disk_cache: bool = _setting(False, "Compress cache files (zstd): a tenth smaller, slower to read.")
    delete_problematic_images: bool = _setting(
        False, "Remember files that cannot be decoded or encoded in a quarantine list, and leave them out from then on."
    )
    delete_quarantined_files: bool = _setting(
        False, "With delete_problematic_images: really delete the source files that come into quarantine."
    )
    delete_unwanted_images: bool = _setting(False, "Accepted for compatibility: no source file is ever deleted.")
    vae_cache_ondemand: bool = _setting(False, "Encode a clip when it is first used.")
    vae_cache_disable: bool = _setting(False, "Encode clips anew every time.")
    vae_cache_clear_each_epoch: bool = _setting(False, "Encode all clips again in every epoch.")
    vae_cache_scan_behaviour: Literal["recreate", "sync"] = _setting("recreate", "What follows from a bad cache file.")
    text_cache_ondemand: bool = _setting(False, "Encode a caption when it is first used.")
    text_cache_disable: bool = _setting(False, "Encode captions anew every time.")
    data_backend_sampling: Literal["auto-weighting", "uniform"] = _setting(
        "auto-weighting", "Whether larger datasets are drawn from more often."
    )
    allow_dataset_oversubscription: bool = _setting(False, "Repeat clips of a bucket smaller than a batch.")
