"""The header of a safetensors file: what it holds and where, without reading any tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

_LENGTH = 8  # bytes of the little-endian number in front of the header


class Entry(NamedTuple):
    """One tensor: its type as the format names it (`BF16`), its shape, and its bytes `[start, end)` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """Tensors in the order of the header, and the free-form metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Reads the header and checks it against the size of the file.

    Raises:
        ValueError: not a safetensors file, or a truncated one; the text says which.
        OSError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        size = path.stat().st_size
        if not 2 <= length <= size - _LENGTH:
            raise ValueError("it is not a safetensors file, or only its beginning is there")
        try:
            header = _parse(json.loads(file.read(length)), _LENGTH + length)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError("it is not a safetensors file") from error
    end = max((entry.end for entry in header.tensors.values()), default=0)
    if end > size:
        raise ValueError(f"it is truncated: {size:,} of {end:,} bytes are there")
    try:
        # Not "pt", which maps the file as writable: that fails for a file larger than the machine's memory.
        with safe_open(path, framework="np"):
            return header
    except SafetensorError as error:
        raise ValueError(f"it is damaged ({error})") from error


def _parse(header: dict[str, Any], offset: int) -> Header:
    metadata = header.pop("__metadata__", None) or {}
    tensors: dict[str, Entry] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = Entry(entry["dtype"], tuple(entry["shape"]), offset + start, offset + end)
    return Header(tensors, metadata)
