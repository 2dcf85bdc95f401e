"""What one rank computes at each step of a job, read from tar shards.

    step t  ->  StepShare     this rank's share of every adapter's step t:
                batches       micro-batches, each of clips of similar lengths
                bad           samples that could not be used, and had others put in their place
                padding       seconds of audio, and seconds that they are padded to

All ranks get the same number of micro-batches, empty ones made up with a silent clip that has no
labels: under ZeRO-3 each rank must make the same number of passes. For the same reason nothing that is
wrong with a clip raises here: ranks agree about it after the step (`training/bad_samples.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from salsa_dist.data.augment import Augment
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.plan import AdapterPlan, Draw
from salsa_dist.data.reading import Bad, ClipReader
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.family import Family


@dataclass(frozen=True)
class Job:
    """One adapter of the job: its draws, how many steps, its languages, what is done to its clips."""

    plan: AdapterPlan
    steps: int
    languages: tuple[str, ...]
    augment: Augment | None = None


@dataclass(frozen=True)
class StepShare:
    """One rank's part of a step.

    Attributes:
        batches: micro-batches, as many on every rank.
        bad: samples of this rank's draws that could not be used.
        hopeless: clips that are missing, no replacement having been of use either.
        seconds: audio of all clips.
        padded_seconds: the same with each clip as long as the longest of its micro-batch.
    """

    batches: list[AdapterBatch]
    bad: list[Bad]
    hopeless: int
    seconds: float
    padded_seconds: float


class StepBatches(Dataset[StepShare]):
    """This rank's shares by step number.

    Args:
        jobs: one entry an adapter, in the bank's row order.
        folder: of the shards.
        family: makes the batches.
        rank, world_size: whose share.
        micro_batch: most clips of one pass.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        family: Family,
        rank: int,
        world_size: int,
        micro_batch: int,
    ) -> None:
        readers = min(job.plan.readers for job in jobs)
        if world_size > readers:
            raise UserError(
                f"too few shards for the ranks: {world_size} ranks share {readers} readers; set "
                f"data.readers to {world_size} or more, and build at least as many shards a language"
            )
        self.jobs = list(jobs)
        self.family = family
        self.rank = rank
        self.world_size = world_size
        self.micro_batch = micro_batch
        self.steps = max(job.steps for job in jobs)
        self._readers = [
            ClipReader(folder, j.plan, j.steps, row, rank, world_size, family.window_s, j.augment)
            for row, j in enumerate(jobs)
        ]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> StepShare:
        bad: list[Bad] = []
        clips: list[tuple[Clip, Draw]] = []
        hopeless = 0
        for row in self.active(step):
            own = self._readers[row].step(step)
            bad += own.bad
            clips += own.clips
            hopeless += own.hopeless
        # Sorted, so that clips of one pass are of similar lengths; keys make the order certain.
        clips.sort(key=lambda c: (c[0].seconds, c[0].key, c[0].row))
        passes = max(1, -(-max(map(len, self._shares(step))) // self.micro_batch))
        batches = []
        seconds = padded = 0.0
        for i in range(passes):
            start, end = (len(clips) * j // passes for j in (i, i + 1))
            batch, used, missing = self._batch(clips[start:end], bad)
            batches.append(batch)
            hopeless += missing
            seconds += sum(clip.seconds for clip in used)
            padded += len(used) * max((clip.seconds for clip in used), default=0.0)
        return StepShare(batches, bad, hopeless, seconds, padded)

    def active(self, step: int) -> list[int]:
        """Rows of the adapters that take part in `step`."""
        return [row for row, job in enumerate(self.jobs) if step < job.steps]

    def clips(self, step: int) -> int:
        """How many clips `step` has, on all ranks."""
        return sum(len(self.jobs[row].plan.step(step)) for row in self.active(step))

    def keys(self, step: int) -> list[str]:
        """Every clip of `step`, of all ranks, as planned."""
        return [draw.entry.key for share in self._shares(step) for _, draw in share]

    def _batch(
        self, clips: list[tuple[Clip, Draw]], bad: list[Bad]
    ) -> tuple[AdapterBatch, list[Clip], int]:
        """One micro-batch, the clips in it, and how many of them are missing."""
        missing = 0
        try:
            return self._training_batch([c for c, _ in clips]), [c for c, _ in clips], missing
        except UserError:
            # The base refuses a clip, such as for a transcript longer than it can write: each alone
            # shows which.
            used = []
            for clip, draw in clips:
                why = self._refusal(clip)
                found = (clip, draw) if why is None else None
                if why is not None:
                    bad.append(Bad("refused", draw.shard.path, draw.entry.key, why))
                    found = self._readers[clip.row].instead(draw, bad, self._refusal)
                if found is None:
                    missing += 1
                else:
                    used.append(found[0])
            return self._training_batch(used), used, missing

    def _refusal(self, clip: Clip) -> str | None:
        """Why the base can't be trained on `clip`; None where it can."""
        try:
            self.family.training_batch([clip])
        except UserError as e:
            return str(e)
        return None

    def _training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        return self.family.training_batch(clips or [silent_clip(self.jobs[0].languages[0])])

    def _shares(self, step: int) -> list[list[tuple[int, Draw]]]:
        """Each rank's (row, draw) of `step`."""
        shares: list[list[tuple[int, Draw]]] = [[] for _ in range(self.world_size)]
        for row in self.active(step):
            for draw in self.jobs[row].plan.step(step):
                shares[draw.reader % self.world_size].append((row, draw))
        return shares


def loader(batches: StepBatches, first: int, workers: int) -> DataLoader[StepShare]:
    """Batches of steps `first` to the last, in order, read ahead by `workers` processes."""
    return DataLoader(
        batches,
        sampler=range(first, len(batches)),
        batch_size=None,
        num_workers=workers,
        # A fork would copy the process group's threads in whatever state they are.
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=2 if workers else None,
    )
