"""A phase of filling the cache that follows the clips': one more entry for each sample, made by one more model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunerkit.cache.claims import divided
from tunerkit.cache.decode_ahead import AHEAD_CLIPS, DECODERS
from tunerkit.cache.encode import EncodingError
from tunerkit.cache.job import Job, until_done
from tunerkit.cache.progress import ProgressBar
from tunerkit.cache.write_behind import WriteBehind
from tunerkit.devices import free_memory

if TYPE_CHECKING:
    import torch

    from tunerkit.data.samples import Sample

Place = tuple[Path, str]
Decoded = tuple["Sample", "torch.Tensor | Exception"]


class Phase(ABC):
    """Makes the entries of one kind that are missing; the model is loaded only if there is one.

    A clip whose entry cannot be made is recorded as failed itself, and left out of the training.

    Args:
        job: what is being filled.
        samples: those that need an entry.
    """

    label: ClassVar[str]
    """Name of the phase beside its progress."""

    def __init__(self, job: Job, samples: Sequence[Sample]) -> None:
        self.job = job
        # Several samples can share an entry: clips of the same content, or silence of one length.
        self._missing: dict[Place, list[Sample]] = defaultdict(list)
        for sample in self.without_entry(samples):
            self._missing[self._place(sample)].append(sample)
        self.count(0, len(samples) - sum(map(len, self._missing.values())))

    # What a kind of entry is -----------------------------------------------------------------------------------

    @abstractmethod
    def without_entry(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those of `samples` that have none yet."""

    @abstractmethod
    def has_entry(self, sample: Sample) -> bool:
        """Whether there is one by now."""

    @abstractmethod
    def name(self, sample: Sample) -> str:
        """Its name."""

    @abstractmethod
    def put(self, sample: Sample, made: torch.Tensor) -> None:
        """Write it."""

    @abstractmethod
    def count(self, made: int, reused: int) -> None:
        """Add to the result."""

    @abstractmethod
    def order(self, sample: Sample) -> tuple[Any, ...]:
        """What samples are sorted by."""

    def batch_size(self, dataset: str) -> int:  # noqa: ARG002
        """Samples of a dataset, by its id, that the model takes at a time, at most."""
        return 1

    def together(self, one: Sample, other: Sample) -> bool:  # noqa: ARG002
        """Whether two samples may share a batch."""
        return False

    @abstractmethod
    def decode(self, sample: Sample) -> torch.Tensor:
        """What the model takes of a sample; called in threads."""

    @abstractmethod
    def encode(self, decoded: Sequence[torch.Tensor]) -> list[torch.Tensor | EncodingError]:
        """What the model, which is loaded when it is first asked, makes of a batch."""

    @abstractmethod
    def close(self) -> None:
        """Drop the model."""

    # Running ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        job = self.job
        if not self._missing:
            return
        ordered = sorted((several[0] for several in self._missing.values()), key=self.order)
        try:
            with ProgressBar(self.label, len(ordered), job.progress) as bar, WriteBehind() as writer:

                def found(sample: Sample) -> None:
                    self.count(0, len(self._missing[self._place(sample)]))
                    bar.advance()

                source = divided(ordered, job.claims, self._place, self.has_entry, found)
                with ThreadPoolExecutor(DECODERS, thread_name_prefix=f"tunerkit-{self.label}") as pool:
                    self._encode(self._decoded_ahead(source, pool), writer, bar)
        finally:
            self.close()
            free_memory()

    def _encode(self, decoded: Iterator[Decoded | None], writer: WriteBehind, bar: ProgressBar) -> None:
        batch: list[tuple[Sample, torch.Tensor]] = []
        for item in until_done(decoded, writer):
            sample, taken = item or (None, None)
            if sample is not None and isinstance(taken, Exception):
                self._fail(sample, str(taken), bar)
                continue
            if batch and (sample is None or not self.together(batch[0][0], sample)):
                self._encode_batch(batch, writer, bar)
                batch = []
            if sample is not None and not isinstance(taken, Exception | None):
                batch.append((sample, taken))
                if len(batch) >= self.batch_size(sample.dataset):
                    self._encode_batch(batch, writer, bar)
                    batch = []

    def _encode_batch(
        self, batch: Sequence[tuple[Sample, torch.Tensor]], writer: WriteBehind, bar: ProgressBar
    ) -> None:
        encoded = self.encode([taken for _, taken in batch])
        for (sample, _), made in zip(batch, encoded, strict=True):
            if isinstance(made, EncodingError):
                self._fail(sample, str(made), bar)
            else:
                self._write(sample, made, writer, bar)

    def _write(self, sample: Sample, made: torch.Tensor, writer: WriteBehind, bar: ProgressBar) -> None:
        def write() -> None:
            self.put(sample, made)
            self.job.claims.release(*self._place(sample))

        def outcome(error: Exception | None) -> None:
            if error is not None:
                self._fail(sample, str(error), bar)
                return
            self.count(len(self._missing[self._place(sample)]), 0)
            bar.advance()

        writer.put(self._place(sample)[0], write, outcome)

    def _fail(self, sample: Sample, reason: str, bar: ProgressBar) -> None:
        """Record every clip that was to have this entry."""
        place = self._place(sample)
        for each in self._missing[place]:
            self.job.fail(each, place, reason, at_fault=False)
        bar.advance()

    def _place(self, sample: Sample) -> Place:
        return self.job.cache.latent_stores[sample.dataset].folder, self.name(sample)

    def _decoded_ahead(self, source: Iterator[Sample | None], pool: ThreadPoolExecutor) -> Iterator[Decoded | None]:
        """The samples of `source` with what is decoded of them, or why that failed, some of them ahead.

        None stands for a source that has nothing at the moment.
        """
        pending: deque[tuple[Sample, Future[torch.Tensor | Exception]]] = deque()
        ahead = max(AHEAD_CLIPS, 2 * max(map(self.batch_size, self.job.batch_sizes)))

        def decode(sample: Sample) -> torch.Tensor | Exception:
            try:
                return self.decode(sample)
            except Exception as error:  # one bad file, whatever the decoder makes of it, must not end the job
                return error

        def first() -> Decoded:
            sample, future = pending.popleft()
            return sample, future.result()

        for sample in source:
            if sample is not None:
                pending.append((sample, pool.submit(decode, sample)))
            while pending and (sample is None or len(pending) > ahead):
                yield first()
            if sample is None:
                yield None
        while pending:
            yield first()
