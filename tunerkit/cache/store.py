"""A folder of safetensors files, each written whole or not at all.

Reading plain safetensors is about 60 times faster than reading a gzipped torch file, for a quarter more disk.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.errors import TunerkitError
from tunerkit.files import remove_leftovers, write_atomically

if TYPE_CHECKING:
    import torch


_HEADER = "tunerkit"


class CacheEntryError(TunerkitError):
    """A cache file is gone, truncated or was changed; it is made anew by building the cache again."""


class Store:
    """Entries by name under `folder`, spread over 256 sub-folders. Several processes may write to one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear_leftovers(self) -> None:
        """Remove what killed processes were writing."""
        for folder in (self.folder, *self.folder.glob("??")):
            remove_leftovers(folder)

    def path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def put(self, name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write an entry; `facts` are kept in its header for people who look inside."""
        from safetensors.torch import save

        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        # One key only: safetensors writes several in random order, and equal entries should be equal files.
        header = {_HEADER: json.dumps({"crc32": _checksum(plain), "facts": facts}, default=str)}
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(plain, metadata=header))

    def get(self, name: str) -> dict[str, torch.Tensor]:
        """Read an entry.

        Raises:
            CacheEntryError: if the file is gone, or not what was written; then it is removed, to be made anew.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(name)
        if not path.is_file():
            raise CacheEntryError(
                f"cache file {path} is gone. Fix: start the same command again (or call build_cache); it is made anew"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                expected = json.loads((file.metadata() or {}).get(_HEADER, "{}")).get("crc32")
        except (SafetensorError, OSError, ValueError) as error:
            raise self._damaged(path, str(error)) from error
        if expected != _checksum(tensors):
            raise self._damaged(path, "its checksum does not match")
        return tensors

    @staticmethod
    def _damaged(path: Path, reason: str) -> CacheEntryError:
        path.unlink(missing_ok=True)
        return CacheEntryError(
            f"cache file {path} was damaged ({reason}) and has been removed. Fix: start the same command again (or "
            "call build_cache); only this entry is made anew"
        )


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    import torch

    value = 0
    for key in sorted(tensors):
        tensor = tensors[key]
        value = zlib.crc32(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, value)
    return value
