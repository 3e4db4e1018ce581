"""What a GPU or the CPU would run, on the meta device, where code asks what kind of device it has.

The meta device has no fused kernels of its own: attention would hold its whole score matrix, and optimizers would make
a temporary copy of every weight. Inside `as_on` the kernels are those of the device, by their shapes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import torch

_aten = torch.ops.aten
_HALF = (torch.bfloat16, torch.float16)
_FLASH_WIDTH = 256
"""Channels of a head, at most, that flash attention takes."""
_BIAS_ALIGNMENT = 8
"""Keys that a mask's rows are padded to a multiple of."""
_ONE_AT_A_TIME = threading.RLock()
"""What is replaced is replaced for the whole process: two that overlap would not put it back."""


@contextlib.contextmanager
def as_on(device: str) -> Iterator[None]:
    """Inside, attention on the meta device is that of a device's fused kernels, sparse attention on a GPU is compiled,
    optimizers are fused, and random numbers come from a generator of the CPU.

    Args:
        device: "cuda" or "cpu".
    """
    import torch.optim.optimizer as optimizer

    from tunerkit.families.kandinsky5 import attention as nabla

    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(_silence())
        instead_of: list[tuple[Any, str, Any]] = [
            (torch.nn.functional, "scaled_dot_product_attention", _on_cpu if device == "cpu" else _on_cuda),
            (optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"]),
            (torch, "Generator", _Generator),
        ]
        if device == "cpu":  # as the module itself does it there
            instead_of.append((nabla, "scaled_dot_product_attention", _on_cpu))
        else:
            instead_of.append((nabla, "block_attention", lambda query, key, value, _: _on_cuda(query, key, value)))
        for place, name, instead in instead_of:
            stack.enter_context(replaced(place, name, instead))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, instead: Any) -> Iterator[None]:
    """Inside, the attribute `name` of a module or an object is `instead`; afterwards it is as it was before."""
    own = vars(owner)
    there, before = name in own, own.get(name)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        if there:
            setattr(owner, name, before)
        else:  # it was its class's
            delattr(owner, name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Inside, nothing is told of a run that does not take place."""
    logger = logging.getLogger("tunerkit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Generator(torch.Generator):
    """A generator of the CPU, whatever device is asked for: without content, no number is drawn."""

    def __new__(cls, _device: Any = None) -> _Generator:
        return super().__new__(cls)


def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` as CUDA computes it: flash attention in half precision, and
    memory-efficient attention with a mask or in float32. `[B, N, S, D]`."""
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    if attn_mask is None and query.dtype in _HALF and query.shape[-1] <= _FLASH_WIDTH:
        return _flash(query, key, value, dropout_p, is_causal, scale)
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    arguments: Any = (query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal)
    return _aten._scaled_dot_product_efficient_attention(*arguments, scale=scale)[0]


def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The same as the CPU computes it: one kernel for all dtypes, with and without a mask."""
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    """Heads are padded to a multiple of 8 channels."""
    width = query.shape[-1]
    if missing := -width % 8:
        query, key, value = (torch.nn.functional.pad(one, (0, missing)) for one in (query, key, value))
    made = _aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
    return made[..., :width]


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask as the kernel takes it: added to the scores, its rows padded, expanded to `[B, N, S, S']`."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    keys = mask.shape[-1]
    if keys > 1 and (missing := -keys % _BIAS_ALIGNMENT):
        mask = torch.nn.functional.pad(mask, (0, missing))[..., :keys]
    return mask.expand(*query.shape[:-1], key.shape[-2])
