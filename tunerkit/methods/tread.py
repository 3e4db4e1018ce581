"""Token routing: in training, a share of the tokens skips a span of blocks (TREAD, arXiv 2501.04765).

At the start of a route, tokens are drawn that skip its blocks; the others pass through them as a shorter sequence with
their own positions and modulation. Behind the route all are put together again: a token that skipped has the value it
had before, so that gradients flow past the blocks as well as through them. Text and sound take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.draws import generator
from tunerkit.methods.tap import video_stream

if TYPE_CHECKING:
    import torch

    from tunerkit.config.tread_rules import Route


class Router:
    """Routes the tokens of one batch; given to the block runner while it is trained.

    Which tokens skip is drawn anew for every route and sample. Where the loss is masked, tokens that it trains pass
    first: the others skip as far as the share of the route goes, which always holds. The tokens of a given first frame
    are drawn like all others: kept by force, they would crowd out those that are learned in a short clip.

    Args:
        routes: the routes, of resolved block numbers, in order.
        token_arguments: `Family.token_arguments`.
        seed: of the run.
        batch_number: number of the batch; with the seed, the route and the call it determines the draws.
        calls: which samples of the batch each call of the transformer holds, as from `Family.calls`.
        trained: bool `[B, S]` on the device: tokens that pass first; None = no token does.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        token_arguments: Callable[[Sequence[Any]], Mapping[int, int]],
        *,
        seed: int,
        batch_number: int,
        calls: Sequence[Sequence[int]],
        trained: torch.Tensor | None = None,
    ) -> None:
        self._starting = {route.first: number for number, route in enumerate(routes)}
        self._routes, self._token_arguments = routes, token_arguments
        self._seed, self._batch_number = seed, batch_number
        self._calls, self._trained = calls, trained
        self._call = -1
        self._span: _Span | None = None

    def before(self, place: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments that block `place` gets; called for the blocks in order, from 0 in every call."""
        if place == 0:
            self._call += 1
            self._span = None
        number = self._starting.get(place)
        if number is not None:
            self._span = self._enter(number, arguments)
        return arguments if self._span is None else self._span.shortened(arguments)

    def after(self, place: int, output: Any) -> Any:
        """What follows on block `place`, from what it gave."""
        span = self._span
        if span is None or place != span.last:
            return output
        self._span = None
        whole = span.whole_again(video_stream(output))
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def _enter(self, number: int, arguments: tuple[Any, ...]) -> _Span | None:
        route, tokens = self._routes[number], arguments[0]
        samples, count, _ = tokens.shape
        kept = count - round(count * route.ratio)
        if kept == count:
            return None
        source = generator(self._seed, "tread", self._batch_number, number, self._call)
        trained = None if self._trained is None else self._trained[list(self._calls[self._call])]
        passing = draw_passing(samples, count, max(kept, 1), source, tokens.device, trained)
        return _Span(route.last, passing, self._token_arguments(arguments), arguments)


def draw_passing(
    samples: int,
    tokens: int,
    kept: int,
    source: torch.Generator,
    device: torch.device,
    first: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which `kept` tokens of each sample pass: numbers `[samples, kept]`, rising, on `device`.

    Args:
        first: bool `[samples, tokens]` on `device`: tokens that are taken before all others.
    """
    import torch

    # Whole numbers that differ: the same choice on every device, and no wait for the device to count.
    ranks = torch.stack([torch.randperm(tokens, generator=source, device="cpu") for _ in range(samples)]).to(device)
    if first is not None:
        ranks = ranks + tokens * ~first
    return ranks.topk(kept, dim=1, largest=False).indices.sort(dim=1).values


def take(tensor: torch.Tensor, numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """The entries `numbers` `[B, K]` of dimension `dim` of each sample of `tensor` `[B, ...]`."""
    shape = [1] * tensor.ndim
    shape[0], shape[dim] = numbers.shape
    return tensor.take_along_dim(numbers.view(shape), dim)


class _Span:
    """A route that is being passed."""

    def __init__(
        self, last: int, passing: torch.Tensor, dimensions: Mapping[int, int], arguments: Sequence[Any]
    ) -> None:
        self.last = last
        self._passing, self._whole = passing, arguments[0]
        self._first: Any = take(arguments[0], passing, 1)
        # The same for every block of the route, so gathered once.
        self._shorter = {
            place: tuple(take(one, passing, dim) for one in arguments[place])
            if isinstance(arguments[place], tuple)
            else take(arguments[place], passing, dim)
            for place, dim in dimensions.items()
            if place != 0
        }

    def shortened(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of the route's next block, with the entries of the passing tokens only."""
        tokens = arguments[0] if self._first is None else self._first
        self._first = None
        return (tokens, *(self._shorter.get(place, one) for place, one in enumerate(arguments) if place != 0))

    def whole_again(self, passed: torch.Tensor) -> torch.Tensor:
        """All tokens `[B, S, D]`: those that passed as they are now, the others as they were."""
        return self._whole.scatter(1, self._passing.unsqueeze(-1).expand_as(passed), passed)
