"""Every random draw of a run as a function of the seed and of what it is for.

There is no generator whose state must be saved: a resumed run asks for the same draws again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit number that depends on all arguments; different purposes or numbers are independent."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `derived_seed`: the same on every device and in every process."""
    import torch

    return torch.Generator().manual_seed(derived_seed(seed, purpose, *numbers))
