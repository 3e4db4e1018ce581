"""Names of number formats in settings and the torch dtypes they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunerkit.config.precisions import is_quantised

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig


def torch_dtype(name: str) -> torch.dtype:
    """`"fp32"`, `"bf16"`, `"fp16"` (or `"no"`, which is fp32) as a torch dtype."""
    import torch

    return {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def model_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype that the transformer's weights have in memory, but for those that are quantised."""
    if is_quantised(config) and config.base_model_default_dtype == "fp32":
        return torch_dtype("fp32")
    return torch_dtype(config.mixed_precision)


def text_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype that texts are encoded and cached in: bfloat16, or float32 with `mixed_precision = "no"`."""
    return torch_dtype("fp32" if config.mixed_precision == "no" else "bf16")
