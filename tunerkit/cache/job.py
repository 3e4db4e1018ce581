"""What the phases of filling the cache share: the cache, the claims, the result, and what becomes of failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tunerkit.cache.write_behind import WriteBehind, cannot_write

if TYPE_CHECKING:
    from tunerkit.cache.claims import Claims
    from tunerkit.cache.entries import Cache
    from tunerkit.cache.progress import Progress
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.families.base import Family

logger = logging.getLogger("tunerkit")
Item = TypeVar("Item")

POLL_SECONDS = 0.5
"""Between looks at entries that other processes are making."""


@dataclass(frozen=True)
class CacheFailure:
    """A clip that could not be encoded, and why. It is left out of the training."""

    file: Path
    reason: str


@dataclass
class CacheResult:
    """What `build_cache` did, in texts and samples. `reused` ones were there already, or another process made them
    meanwhile; samples of equal content share an entry, and all count as encoded when it is made.

    `fallbacks` counts the clips that were encoded in less memory than configured, by how ("in parts", "tiled", "cpu").
    """

    texts_encoded: int = 0
    texts_reused: int = 0
    latents_encoded: int = 0
    latents_reused: int = 0
    sounds_encoded: int = 0
    sounds_reused: int = 0
    features_encoded: int = 0
    features_reused: int = 0
    failures: list[CacheFailure] = field(default_factory=list)
    seconds: float = 0.0
    fallbacks: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"captions: {self.texts_encoded} encoded, {self.texts_reused} already cached",
            f"clips: {self.latents_encoded} encoded, {self.latents_reused} already cached, "
            f"{len(self.failures)} failed ({self.seconds:.1f} s)",
        ]
        if self.sounds_encoded or self.sounds_reused:
            lines.append(f"sound: {self.sounds_encoded} encoded, {self.sounds_reused} already cached")
        if self.features_encoded or self.features_reused:
            lines.append(f"features: {self.features_encoded} encoded, {self.features_reused} already cached")
        if self.fallbacks:
            ways = ", ".join(f"{count} {how}" for how, count in sorted(self.fallbacks.items()))
            lines.append(f"encoded otherwise than configured, because memory was short: {ways}")
        return "\n".join([*lines, *(f"  {failure.file}: {failure.reason}" for failure in self.failures)])


class Job:
    """One call of `build_cache`: what its phases share.

    Attributes:
        batch_sizes: dataset id -> clips, or sounds, of it that are encoded at a time.
    """

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        cache: Cache,
        claims: Claims,
        result: CacheResult,
        progress: Progress | bool,
    ) -> None:
        self.config, self.family, self.cache, self.claims = config, family, cache, claims
        self.result, self.progress = result, progress
        self.batch_sizes = {dataset.id: dataset.vae_batch_size or config.vae_batch_size for dataset in config.datasets}
        self._at_fault: list[CacheFailure] = []

    def fail(self, sample: Sample, place: tuple[Path, str], reason: str, *, at_fault: bool) -> None:
        """Record a clip that is left out, once per file.

        Args:
            place: store and name of the entry that could not be made; its claim is given back.
            at_fault: no setting would help.
        """
        self.claims.release(*place)
        failure = CacheFailure(sample.file, reason)
        if sample.file in {known.file for known in self.result.failures}:
            return
        logger.warning("%s is left out: %s", sample.file, reason)
        self.result.failures.append(failure)
        if at_fault:
            self._at_fault.append(failure)

    def usable(self, samples: Iterable[Sample]) -> list[Sample]:
        """Those whose clips have not failed so far."""
        failed = {failure.file for failure in self.result.failures}
        return [sample for sample in samples if sample.file not in failed]

    def quarantine(self) -> None:
        """Put clips that cannot be decoded on the quarantine list, if that is wanted; the list deletes them if told to.

        Clips that failed for want of memory, for their mask, their sound or a setting are not: they would stay out for
        ever.
        """
        if not self.config.delete_problematic_images or not self._at_fault:
            return
        from tunerkit.data.quarantine import Quarantine

        listed = Quarantine.of(self.config)
        try:
            for failure in self._at_fault:
                listed.add(failure.file, failure.reason)
        except OSError as error:
            raise cannot_write(self.config.cache_path, error) from error


def reason_of(error: Exception) -> str:
    """What is wrong, without the file's name where the error repeats it."""
    from tunerkit.data.media import UnreadableMedia

    return f"{error.reason}. Fix: {error.fix}" if isinstance(error, UnreadableMedia) else str(error)


def until_done(source: Iterator[Item | None], writer: WriteBehind) -> Iterator[Item | None]:
    """The items of `source`; None, and None at the end, tells the caller to finish what it has collected.

    While all that is left is being made by other processes, it is waited for, as long as they live.
    """
    told = False
    for item in source:
        yield item
        if item is None:
            writer.settle(0)
            if not told:
                logger.info("the rest is being encoded by other processes; waiting for them")
            told = True
            time.sleep(POLL_SECONDS)
    yield None
