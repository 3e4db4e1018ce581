"""Fills a cache, slowly enough to be killed at it; started by test_cache_filling.py.

    python cache_filling_run.py CONFIG SECONDS

Every encode takes SECONDS longer. Prints what this process encoded, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

import tunerkit as tk
from tunerkit.families.sana_video import SanaVideo


def slower(name: str, seconds: float) -> None:
    original = getattr(SanaVideo, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return original(*args, **kwargs)

    setattr(SanaVideo, name, wrapped)


def main() -> None:
    config_path, seconds = sys.argv[1:]
    torch.set_num_threads(1)
    slower("encode_text", float(seconds))
    slower("encode_latents", float(seconds))
    result = tk.build_cache(tk.load_config(config_path), progress=False)
    failures = [str(failure) for failure in result.failures]
    print(json.dumps({"texts": result.texts_encoded, "latents": result.latents_encoded, "failures": failures}))


if __name__ == "__main__":
    main()
