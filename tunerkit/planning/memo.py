"""Results of operations on the meta device, worked out once: shapes repeat from block to block."""

from __future__ import annotations

from typing import Any

import torch

MOST = 50_000
"""Results that are remembered, some 1 kB each."""


class MetaMemo:
    """Runs operations on tensors of the meta device, and repeats what the same operation gave before.

    Repeated are operations that make new tensors. Those in place, which change nothing but content, are left out where
    the same one was run before. Views are run.
    """

    def __init__(self) -> None:
        self._pure: dict[Any, bool] = {}
        self._in_place: dict[Any, bool] = {}
        self._known: dict[Any, Any] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        pure = self._pure.get(func)
        if pure is None:
            pure = self._pure[func] = _makes_new_tensors(func)
        if not pure:
            return self._content_only(func, args, kwargs)
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

    def _content_only(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation in place (or a view, which is run)."""
        in_place = self._in_place.get(func)
        if in_place is None:
            in_place = self._in_place[func] = _works_in_place(func)
        key = _key((func, args, kwargs)) if in_place else None
        if key is None:
            return func(*args, **kwargs)
        if key in self._known:
            return args[0]
        before = _place(args[0])
        result = func(*args, **kwargs)
        if result is args[0] and _place(result) == before:
            self._known[key] = None
        return result


def _works_in_place(func: Any) -> bool:
    """Whether an operation writes into its first argument, alone, and gives it back."""
    first, *others = func._schema.arguments
    returns = [one.alias_info for one in func._schema.returns]
    written = first.alias_info is not None and first.alias_info.is_write
    return written and len(returns) == 1 and returns[0] is not None and all(one.alias_info is None for one in others)


def _place(tensor: torch.Tensor) -> Any:
    storage = tensor.untyped_storage()
    return tensor.shape, tensor.stride(), tensor.storage_offset(), storage._cdata, storage.nbytes()


def _makes_new_tensors(func: Any) -> bool:
    schema = func._schema
    named = [*schema.arguments, *schema.returns]
    return all(one.alias_info is None for one in named) and not func.is_view


def _shares_memory(args: Any, result: Any) -> bool:
    if not isinstance(result, torch.Tensor):
        return False
    storage = result.untyped_storage()._cdata
    return any(isinstance(one, torch.Tensor) and one.untyped_storage()._cdata == storage for one in args)


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
_NUMBERS = (int, float, bool)


class _Unhashable(Exception):  # noqa: N818 - never leaves this module
    pass


def _key(values: Any) -> Any:
    """What decides the shape of a result; None where that is not known from shapes alone."""
    try:
        return _described(values)
    except _Unhashable:
        return None


def _described(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN_TENSORS:
        if not value.is_meta:
            raise _Unhashable
        return value.dtype, value.shape, value.stride()
    if kind is tuple or kind is list:
        return tuple([_described(one) for one in value])
    if kind is dict:
        return tuple([(name, _described(one)) for name, one in value.items()])
    if kind in _NUMBERS:  # 1, 1.0 and True are equal, and give tensors of different dtypes
        return kind, value
    if isinstance(value, (torch.Tensor, torch.Generator)):
        raise _Unhashable
    return value


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
