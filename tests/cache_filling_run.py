"""Fills a cache, slowly enough to be killed at it; started by test_cache_filling.py.

    python cache_filling_run.py CONFIG SECONDS [sound]

Every encode takes SECONDS longer; with `sound`, Sana is a family with sound. Prints what this process encoded, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

import tunerkit as tk
from tunerkit import families
from tunerkit.families.sana_video.family import SanaVideo


def slower(name: str, seconds: float, family: type[SanaVideo] = SanaVideo) -> None:
    original = getattr(family, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return original(*args, **kwargs)

    setattr(family, name, wrapped)


def main() -> None:
    config_path, seconds, *sound = sys.argv[1:]
    torch.set_num_threads(1)
    slower("encode_text", float(seconds))
    slower("encode_latents", float(seconds))
    if sound:
        from test_sound_cache import Talking

        families._families()["sanavideo"] = Talking()
        slower("encode_sound", float(seconds), Talking)
    result = tk.build_cache(tk.load_config(config_path), progress=False)
    failures = [str(failure) for failure in result.failures]
    done = {"texts": result.texts_encoded, "latents": result.latents_encoded, "sounds": result.sounds_encoded}
    print(json.dumps(done | {"failures": failures}))


if __name__ == "__main__":
    main()
