"""Hidden states of the transformer, taken while it is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def video_stream(output: Any) -> torch.Tensor:
    """The picture's tokens `[B, S, D]` of what a block gives: they come first where it gives sound as well."""
    return output[0] if isinstance(output, tuple) else output


class Tap:
    """Keeps the output of one block, with its gradient graph, for a term of the loss.

    Args:
        index: which block, counted from 0 among `Family.video_blocks`.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._calls: Sequence[Sequence[int]] = ()
        self._kept: list[torch.Tensor] = []

    @contextlib.contextmanager
    def open(self, calls: Sequence[Sequence[int]]) -> Iterator[None]:
        """Inside, what was kept can be read; afterwards it is gone.

        Args:
            calls: which samples of the batch each call of the transformer holds, as from `Family.calls`.
        """
        self._calls = calls
        try:
            yield
        finally:
            self._calls, self._kept = (), []

    def after(self, place: int, output: Any) -> None:
        """Called by the block runner with what block `place` gave, outside of what is recomputed in backward."""
        if place == self.index:
            self._kept.append(video_stream(output))

    @property
    def states(self) -> torch.Tensor:
        """Hidden states `[B, S, D]`: the samples as in the batch, the tokens of the full grid in order.

        Raises:
            RuntimeError: the block did not run for every sample; blocks are watched only where gradients are enabled.
        """
        import torch

        if len(self._kept) != len(self._calls) or not self._kept:
            raise RuntimeError(f"block {self.index} gave {len(self._kept)} outputs in {len(self._calls)} calls")
        if len(self._kept) == 1:
            return self._kept[0]
        order = [place for call in self._calls for place in call]
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(self._kept)[back]
