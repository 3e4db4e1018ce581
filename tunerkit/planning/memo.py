"""Results of operations on the meta device, worked out once: shapes repeat from block to block."""

from __future__ import annotations

from typing import Any

import torch

MOST = 50_000
"""Results that are remembered, some 1 kB each."""


class MetaMemo:
    """Runs operations on tensors of the meta device, and repeats what the same operation gave before.

    Only operations that make new tensors are repeated; views and operations in place are run.
    """

    def __init__(self) -> None:
        self._pure: dict[Any, bool] = {}
        self._known: dict[Any, Any] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        pure = self._pure.get(func)
        if pure is None:
            pure = self._pure[func] = _makes_new_tensors(func)
        if not pure:
            return func(*args, **kwargs)
        key = _key((func, args, kwargs))
        if key is None:
            return func(*args, **kwargs)
        recipe = self._known.get(key)
        if recipe is not None:
            made = tuple(
                torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in recipe[1]
            )
            return made if recipe[0] else made[0]
        result = func(*args, **kwargs)
        if _shares_memory(args, result):  # a view in all but its schema: aten::_unsafe_view
            self._pure[func] = False
        elif (recipe := _recipe(result)) is not None:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = recipe
        return result


def _makes_new_tensors(func: Any) -> bool:
    schema = func._schema
    named = [*schema.arguments, *schema.returns]
    return all(one.alias_info is None for one in named) and not func.is_view


def _shares_memory(args: Any, result: Any) -> bool:
    if not isinstance(result, torch.Tensor):
        return False
    storage = result.untyped_storage()._cdata
    return any(isinstance(one, torch.Tensor) and one.untyped_storage()._cdata == storage for one in args)


class _Unhashable(Exception):  # noqa: N818 - never leaves this module
    pass


def _key(values: Any) -> Any:
    """What decides the shape of a result; None where that is not known from shapes alone."""
    try:
        return _described(values)
    except _Unhashable:
        return None


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not value.is_meta or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise _Unhashable
        return value.dtype, value.shape, value.stride()
    if isinstance(value, (tuple, list)):
        return tuple([_described(one) for one in value])
    if isinstance(value, dict):
        return tuple([(name, _described(one)) for name, one in value.items()])
    if isinstance(value, torch.Generator):
        raise _Unhashable
    return type(value), value


def _recipe(result: Any) -> Any:
    """How to make a result again: whether it is several tensors, and shape, stride and dtype of each."""
    several = isinstance(result, (tuple, list))
    tensors = tuple(result) if several else (result,)
    for one in tensors:
        if type(one) is not torch.Tensor or not one.is_meta or one.storage_offset() or one._is_view():
            return None
    return several, tuple((one.shape, one.stride(), one.dtype) for one in tensors)


MEMO = MetaMemo()
"""Shared by all traces of a process: a result depends on nothing but the operation."""
