"""What traced operations start on a GPU: whether a kernel, and the bytes that it moves in the GPU's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch

_NOTHING = {
    f"aten::{name}"
    for name in (
        "_reshape_alias", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
        "new_empty_strided",
    )
}  # fmt: skip
"""Operations beside views that only make room for a tensor, or look at one that is there."""


@cache
def starts_kernel(operation: Any) -> bool:
    """Whether an operator (`torch._ops.OpOverload`) computes or copies something; views do not."""
    return not operation.is_view and operation._schema.name not in _NOTHING


def touched(arguments: Iterable[Any], result: Any) -> int:
    """Bytes that the kernel of an operation reads and writes, each tensor once.

    Args:
        arguments: positional arguments of the operation; lists of tensors are looked into.
        result: what it gave; where it works in place, the tensor that it wrote.
    """
    return sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())  # broadcast ones are small
        for tensor in (*_tensors(arguments), *_tensors((result,)))
    )


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
