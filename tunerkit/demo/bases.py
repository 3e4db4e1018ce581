"""The basis that the tiny transformers carry their latents in."""

from __future__ import annotations

import math
from typing import Any


def cosine_basis(rows: int, columns: int) -> Any:  # torch.Tensor
    """`[rows, columns]` float32 with orthonormal columns of zero mean (DCT-II without its constant), columns < rows."""
    import torch

    row = torch.arange(rows, dtype=torch.float64)[:, None]
    frequency = torch.arange(1, columns + 1, dtype=torch.float64)[None]
    return (torch.cos(math.pi * frequency * (row + 0.5) / rows) * math.sqrt(2 / rows)).float()
