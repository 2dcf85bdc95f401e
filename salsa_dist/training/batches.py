"""What one rank computes at each step of a job, read from tar shards.

    step t  ->  [AdapterBatch, …]     this rank's share of every adapter's step t, in micro-batches

All ranks get the same number of micro-batches, empty ones made up with a silent clip that has no
labels: under ZeRO-3 each rank must make the same number of passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.plan import AdapterPlan, Draw
from salsa_dist.data.shards import read_range, read_sample
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.family import Family, SharesClips

NO_AUDIO = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Job:
    """One adapter of the job: its draws, how many steps, its language."""

    plan: AdapterPlan
    steps: int
    language: str


class StepBatches(Dataset[list[AdapterBatch]]):
    """Batches by step number.

    Args:
        jobs: one entry an adapter, in the bank's row order.
        folder: of the shards.
        family: makes the batches.
        rank, world_size: whose share.
        micro_batch: most clips of one pass.
        share: a clip that several adapters take in a step is read and heard once for all of them.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        family: Family,
        rank: int,
        world_size: int,
        micro_batch: int,
        share: bool = False,
    ) -> None:
        readers = min(job.plan.readers for job in jobs)
        if world_size > readers:
            raise UserError(
                f"too few shards for the ranks: {world_size} ranks share {readers} readers; set "
                f"data.readers to {world_size} or more, and build at least as many shards a language"
            )
        self.jobs = list(jobs)
        self.folder = folder
        self.family = family
        self.rank = rank
        self.world_size = world_size
        self.micro_batch = micro_batch
        self.share = share and isinstance(family, SharesClips)
        self.steps = max(job.steps for job in jobs)
        self.dropped: set[int] = set()  # rows that stopped early
        self.texts: dict[str, str] | None = None  # transcripts by key, where no audio need be read

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[AdapterBatch]:
        shares = self._shares(step)
        passes = max(1, -(-max(map(len, shares)) // self.micro_batch))
        if self.share:
            return self._shared(shares[self.rank], passes)
        clips = [
            read_clip(self.folder, draw, self.jobs[row].language, row)
            for row, draw in shares[self.rank]
        ]
        return [
            self.family.training_batch(clips[i::passes] or [silent_clip(self.jobs[0].language)])
            for i in range(passes)
        ]

    def _shared(self, share: Sequence[tuple[int, Draw]], passes: int) -> list[AdapterBatch]:
        """The same with the samples of one clip beside each other, its audio there once."""
        assert isinstance(self.family, SharesClips)
        samples: dict[str, list[tuple[int, Draw]]] = {}
        for row, draw in share:
            samples.setdefault(draw.entry.key, []).append((row, draw))
        clips: list[Clip] = []
        for same in samples.values():
            row, draw = same[0]
            if self.texts is not None:
                first = Clip(draw.entry.key, NO_AUDIO, self.texts[draw.entry.key], "")
            else:
                first = read_clip(self.folder, draw, self.jobs[row].language, row)
            clips += [replace(first, row=r, language=self.jobs[r].language) for r, _ in same]
        batches = []
        for i in range(passes):
            part = clips[i * len(clips) // passes : (i + 1) * len(clips) // passes]
            part = part or [silent_clip(self.jobs[0].language)]
            heard = list({clip.key: clip for clip in part}.values())
            batches.append(self.family.shared_batch(part, heard, kept=self.texts is not None))
        return batches

    def active(self, step: int) -> list[int]:
        """Rows of the adapters that take part in `step`."""
        return [
            row for row, job in enumerate(self.jobs) if step < job.steps and row not in self.dropped
        ]

    def keys(self, step: int) -> list[str]:
        """Every clip of `step`, of all ranks."""
        return [draw.entry.key for share in self._shares(step) for _, draw in share]

    def drawn(self, first: int) -> Iterator[tuple[Draw, str]]:
        """What this rank draws from step `first` on, with the language; clips may come again."""
        for step in range(first, self.steps):
            for row, draw in self._shares(step)[self.rank]:
                yield draw, self.jobs[row].language

    def _shares(self, step: int) -> list[list[tuple[int, Draw]]]:
        """Each rank's (row, draw) of `step`."""
        shares: list[list[tuple[int, Draw]]] = [[] for _ in range(self.world_size)]
        for row in self.active(step):
            for draw in self.jobs[row].plan.step(step):
                shares[draw.reader % self.world_size].append((row, draw))
        return shares


def read_clip(folder: Path, draw: Draw, language: str, row: int) -> Clip:
    """One drawn clip, decoded."""
    path = folder / draw.shard.path
    audio, facts = read_sample(read_range(path, draw.entry), path, draw.entry.key)
    return Clip(draw.entry.key, audio, str(facts["text"]), language, row)


def loader(
    batches: StepBatches, first: int, workers: int, end: int | None = None
) -> DataLoader[list[AdapterBatch]]:
    """Batches of steps `first` to before `end`, in order, read ahead by `workers` processes."""
    return DataLoader(
        batches,
        sampler=range(first, len(batches) if end is None else end),
        batch_size=None,
        num_workers=workers,
        # A fork would copy the process group's threads in whatever state they are.
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=2 if workers else None,
    )
