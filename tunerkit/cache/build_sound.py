"""The last phase of filling the cache: the sound of the clips, with the audio VAE alone in memory."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit.cache.claims import divided
from tunerkit.cache.decode_ahead import AHEAD_CLIPS, DECODERS
from tunerkit.cache.encode import EncodingError, encode_sounds, load_audio_vae, sound_waveform
from tunerkit.cache.job import Job, until_done
from tunerkit.cache.progress import ProgressBar
from tunerkit.cache.write_behind import WriteBehind
from tunerkit.devices import free_memory

if TYPE_CHECKING:
    import torch

    from tunerkit.data.samples import Sample

Place = tuple[Path, str]
Decoded = tuple["Sample", "torch.Tensor | Exception"]


def encode_missing_sounds(job: Job, samples: Iterable[Sample]) -> None:
    """Encode the sound that is missing; the audio VAE is loaded only if there is some.

    Clips that failed before are passed over. A clip whose sound cannot be encoded is recorded as failed itself.
    """
    failed = {failure.file for failure in job.result.failures}
    wanted = [sample for sample in samples if sample.sound is not None and sample.file not in failed]
    if wanted:
        _SoundPhase(job, wanted).run()


class _SoundPhase:
    def __init__(self, job: Job, samples: Sequence[Sample]) -> None:
        self._job = job
        self._vae: Any = None
        # Several samples can share an entry: silence of one length, or one sound file for clips of the same content.
        self._missing: dict[Place, list[Sample]] = defaultdict(list)
        for sample in job.cache.without_sound(samples):
            self._missing[self._place(sample)].append(sample)
        job.result.sounds_reused += len(samples) - sum(map(len, self._missing.values()))

    def run(self) -> None:
        job, result = self._job, self._job.result
        if not self._missing:
            return
        ordered = sorted((several[0] for several in self._missing.values()), key=_order)
        try:
            with ProgressBar("sound", len(ordered), job.progress) as bar, WriteBehind() as writer:

                def found(sample: Sample) -> None:
                    result.sounds_reused += len(self._missing[self._place(sample)])
                    bar.advance()

                source = divided(ordered, job.claims, self._place, job.cache.has_sound, found)
                with ThreadPoolExecutor(DECODERS, thread_name_prefix="tunerkit-sound") as pool:
                    self._encode(_decoded_ahead(source, pool, job), writer, bar)
        finally:
            self._vae = None
            free_memory()

    def _encode(self, decoded: Iterator[Decoded | None], writer: WriteBehind, bar: ProgressBar) -> None:
        batch: list[tuple[Sample, torch.Tensor]] = []
        for item in until_done(decoded, writer):
            sample, waveform = item or (None, None)
            if sample is not None and isinstance(waveform, Exception):
                self._fail(sample, str(waveform), bar)
                continue
            if batch and (sample is None or _order(batch[0][0])[:2] != _order(sample)[:2]):
                self._encode_batch(batch, writer, bar)
                batch = []
            if sample is not None and not isinstance(waveform, Exception | None):
                batch.append((sample, waveform))
                if len(batch) >= self._job.batch_sizes[sample.dataset]:
                    self._encode_batch(batch, writer, bar)
                    batch = []

    def _encode_batch(
        self, batch: Sequence[tuple[Sample, torch.Tensor]], writer: WriteBehind, bar: ProgressBar
    ) -> None:
        job = self._job
        if self._vae is None:
            self._vae = load_audio_vae(job.config, job.family)
        encoded = encode_sounds(self._vae, job.family, [waveform for _, waveform in batch])
        for (sample, _), latents in zip(batch, encoded, strict=True):
            if isinstance(latents, EncodingError):
                self._fail(sample, str(latents), bar)
            else:
                self._write(sample, latents, writer, bar)

    def _write(self, sample: Sample, latents: torch.Tensor, writer: WriteBehind, bar: ProgressBar) -> None:
        def write() -> None:
            self._job.cache.put_sound(sample, latents)
            self._job.claims.release(*self._place(sample))

        def outcome(error: Exception | None) -> None:
            if error is not None:
                self._fail(sample, str(error), bar)
                return
            self._job.result.sounds_encoded += len(self._missing[self._place(sample)])
            bar.advance()

        writer.put(self._place(sample)[0], write, outcome)

    def _fail(self, sample: Sample, reason: str, bar: ProgressBar) -> None:
        """Record every clip that was to have this sound."""
        place = self._place(sample)
        for each in self._missing[place]:
            self._job.fail(each, place, reason, at_fault=False)
        bar.advance()

    def _place(self, sample: Sample) -> Place:
        cache = self._job.cache
        return cache.latent_stores[sample.dataset].folder, cache.namer.sound(sample)


def _order(sample: Sample) -> tuple[float, str, str, float]:
    """Those of one length and dataset, which share a batch, next to each other; short ones first."""
    sound = sample.sound
    assert sound is not None
    return round(sound.seconds, 6), sample.dataset, str(sound.file), sound.start


def _decoded_ahead(source: Iterator[Sample | None], pool: ThreadPoolExecutor, job: Job) -> Iterator[Decoded | None]:
    """The samples of `source` with their waveforms, or why there is none, some of them decoded ahead.

    None stands for a source that has nothing at the moment.
    """
    pending: deque[tuple[Sample, Future[torch.Tensor | Exception]]] = deque()
    ahead = max(AHEAD_CLIPS, 2 * max(job.batch_sizes.values()))

    def decode(sample: Sample) -> torch.Tensor | Exception:
        try:
            return sound_waveform(job.family, sample)
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
