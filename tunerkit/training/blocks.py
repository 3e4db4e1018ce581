"""The one callable through which a training forward runs every transformer block.

diffusers models hand each block and its positional arguments to the function given to
`enable_gradient_checkpointing`. Installing our own there reaches every block of a stock model without a forked
forward; whether the block is then checkpointed is this runner's choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from tunerkit.memory.offload import Offloader
    from tunerkit.methods.tap import Tap
    from tunerkit.methods.tread import Router


class BlockRunner:
    """Runs transformer blocks, with or without gradient checkpointing.

    Args:
        blocks: the blocks that the picture's tokens pass, in order; any other module that the model hands over is run
            the same way, and not watched.
        checkpointing: keep only block inputs in the forward pass and recompute the rest in backward: less memory, one
            more forward of compute. Gradients are identical.
        random_inside: whether blocks draw random numbers (dropout), so that the recomputation must repeat them.
        offloader: what brings the blocks' weights, in the recomputation as well; needs checkpointing, since autograd
            would hold all weights from the forward pass on.

    Raises:
        ValueError: there is an offloader and no checkpointing.
    """

    def __init__(
        self,
        blocks: Sequence[torch.nn.Module],
        *,
        checkpointing: bool,
        random_inside: bool = False,
        offloader: Offloader | None = None,
    ) -> None:
        if offloader is not None and not checkpointing:
            raise ValueError("weights can be offloaded only where blocks are checkpointed")
        self._places = {id(block): place for place, block in enumerate(blocks)}
        self._router: Router | None = None
        self._taps: Sequence[Tap] = ()
        self.checkpointing = checkpointing
        self.random_inside = random_inside
        self._offloaded: dict[str, Any] = (
            {} if offloader is None else {"context_fn": offloader.around_recomputation, "early_stop": False}
        )

    def install(self, transformer: Any) -> None:
        """Make `transformer` call this runner for each block whenever gradients are enabled."""
        transformer.enable_gradient_checkpointing(gradient_checkpointing_func=self)

    @contextlib.contextmanager
    def watched(self, *, router: Router | None = None, taps: Sequence[Tap] = ()) -> Iterator[None]:
        """Inside, calls of the transformer have their tokens routed by `router` and are read by `taps`.

        Where gradients are disabled nothing of it happens: there, the transformer calls its blocks itself.
        """
        self._router, self._taps = router, taps
        try:
            yield
        finally:
            self._router, self._taps = None, ()

    def __call__(self, block: torch.nn.Module, *arguments: Any) -> Any:
        place = self._places.get(id(block))
        if place is None:
            return self._run(block, *arguments)
        if self._router is not None:
            arguments = self._router.before(place, arguments)
        output = self._run(block, *arguments)
        if self._router is not None:
            output = self._router.after(place, output)
        for tap in self._taps:
            tap.after(place, output)
        return output

    def _run(self, block: torch.nn.Module, *arguments: Any) -> Any:
        if not self.checkpointing:
            return block(*arguments)
        return checkpoint(
            block.__call__,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=self.random_inside,
            **self._offloaded,
        )
