"""The batches of one rank at each step, of all adapters trained together, read from tar shards.

    step t  ->  StepShare     this rank's share of every adapter's step t:
                batches       micro-batches, each of clips of similar lengths
                bad           samples that could not be used; others replace them
                seconds       of audio; padded_seconds: with padding

All ranks get the same number of micro-batches, empty ones made up with a silent clip that has no
labels: under ZeRO-3 each rank must make the same number of passes. For the same reason nothing that is
wrong with a clip raises here: ranks agree about it after the step (`training/bad_sample_limit.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from salsa_dist.data import last_read
from salsa_dist.data.augment import Augment
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.joining import joined, windows
from salsa_dist.data.reading import Bad, ClipReader, read_clip
from salsa_dist.data.sampling import AdapterPlan, Sample, dealt
from salsa_dist.data.shards import BadSample
from salsa_dist.data.share import rank_of
from salsa_dist.data.traffic import Traffic, traffic
from salsa_dist.errors import UserError
from salsa_dist.placement.kept_prefix import Known, without_audio
from salsa_dist.places import Folder, Remote
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.family import Family
from salsa_dist.training.passes import PassLimits

Window = list[tuple[Clip, Sample]]  # clips joined in one audio window; mostly one


@dataclass(frozen=True)
class AdapterClips:
    """The clips of one adapter: which ones, for how many steps, in which languages, and what is done to
    them."""

    plan: AdapterPlan
    steps: int
    languages: tuple[str, ...]
    augment: Augment | None = None
    join: int = 1  # clips of one audio window, at most


@dataclass(frozen=True)
class StepShare:
    """One rank's part of a step.

    Attributes:
        batches: micro-batches, as many on every rank.
        clips: of this rank, as planned.
        bad: this rank's samples that could not be used.
        hopeless: clips that are missing, no replacement having been of use either.
        seconds: audio of all clips.
        padded_seconds: the same with each clip as long as the longest of its micro-batch.
        store: what this process had of the store since the share before; None where shards lie in a
            folder.
    """

    batches: list[AdapterBatch]
    clips: int
    bad: list[Bad]
    hopeless: int
    seconds: float
    padded_seconds: float
    store: Traffic | None = None

    def pin_memory(self) -> StepShare:
        """Batches in pinned memory; the data loader calls this."""
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])


class StepBatches(Dataset[StepShare]):
    """This rank's shares by step number.

    Args:
        adapters: the clips of each, in the bank's row order.
        folder: of the shards.
        family: makes the batches; its class, such as that of `whisper.py`, was chosen in `load.py`.
        rank, world_size: whose share.
        micro_batch: most clips of one pass.
        pass_seconds: most seconds of one pass, padding included; None: as many as there are.
        share: read and encode a clip once for all adapters that sample it in a step.
    """

    def __init__(
        self,
        adapters: Sequence[AdapterClips],
        folder: Folder,
        family: Family,
        rank: int,
        world_size: int,
        micro_batch: int,
        share: bool = False,
        pass_seconds: float | None = None,
    ) -> None:
        readers = min(own.plan.readers for own in adapters)
        if world_size > readers and any(own.join > 1 for own in adapters):
            # A window's clips are of one reader, and all of a rank's.
            raise UserError(
                f"data.join_clips: {world_size} ranks share {readers} readers; set data.readers to "
                f"{world_size} or more, and build at least as many shards per language"
            )
        self.adapters = list(adapters)
        self.family = family
        self.rank = rank
        self.world_size = world_size
        self.limits = PassLimits(micro_batch, pass_seconds, family.padded_to_s)
        self.steps = max(own.steps for own in adapters)
        self.folder = folder
        self._before = Traffic()
        self.stopped: frozenset[int] = frozenset()  # rows that stopped early
        self._known: Mapping[str, Known] | None = None  # by key, where no audio need be read
        # Adapters with the same samples have one reader: a clip of theirs is read and decoded once.
        self._readers: list[ClipReader] = []
        self._reader_of: list[int] = []
        reader_of: dict[object, int] = {}
        for own in adapters:
            same = (own.plan.key, own.augment)
            if same not in reader_of:
                reader_of[same] = len(self._readers)
                self._readers.append(
                    ClipReader(
                        *(folder, own.plan, self.steps, rank, world_size),
                        max_seconds=family.window_s,
                        augment=own.augment,
                        turn=reader_of[same],
                    )
                )
            self._reader_of.append(reader_of[same])
        # An augmented clip is another for each adapter; and where no two adapters take the same clips a
        # pass in two parts would only gather weights twice.
        plain = all(own.augment is None for own in adapters)
        self.share = share and plain and len(self._readers) < len(adapters)

    def draws(self) -> list[int]:
        """A number per row; adapters that take the same clips have the same."""
        return list(self._reader_of)

    def first_clips(self, draw: int, count: int) -> list[Clip]:
        """The first clips of a draw that can be used, the same on any number of ranks.

        A silent one stands for all where none of the first `4 * count` can.
        """
        own = self._readers[draw]
        planned = (sample for step in itertools.count() for sample in own.plan.step(step))
        clips: list[Clip] = []
        for sample in itertools.islice(planned, 4 * count):
            try:
                clip = read_clip(own.folder, sample.shard, sample.entry)
            except BadSample:
                continue
            if clip.seconds <= own.max_seconds and self._refusal(clip) is None:
                clips.append(clip)
            if len(clips) == count:
                break
        return clips or [silent_clip(self.adapters[self._reader_of.index(draw)].languages[0])]

    def stop(self, rows: Collection[int]) -> None:
        """The adapters of `rows`, and no others, take part in no further step."""
        self.stopped = frozenset(rows)

    def limit_pass(self, clips: int) -> None:
        """A pass has at most `clips` from now on."""
        self.limits = replace(self.limits, windows=min(self.limits.windows, clips))

    def use_kept_prefix(self, known: Mapping[str, Known]) -> None:
        """From now on read no audio: the prefix cache has every clip's hidden states.

        Args:
            known: by key, what else is needed of each clip.
        """
        self._known = known

    def largest_pass(self, step: int, seconds: float) -> int:
        """Most windows that a pass of `step` may have, if each lasts `seconds`."""
        most = -(-max(map(len, self._shares(step))) // self.passes(step))
        return self.limits.largest(most, seconds)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> StepShare:
        bad: list[Bad] = []
        sampled, hopeless = self._windows(step, bad)
        # Sorted, so that windows of one pass are of similar lengths; keys make the order certain.
        sampled.sort(key=lambda w: (sum(c.seconds for c, _ in w), w[0][0].key, w[0][0].row))
        passes = self.passes(step)
        batches = []
        seconds = padded = 0.0
        for start, end in self.limits.cuts([sum(c.seconds for c, _ in w) for w in sampled], passes):
            batch, used, missing = self._batch(sampled[start:end], bad)
            last_read.now()  # features of a pass
            batches.append(batch)
            hopeless += missing
            seconds += sum(clip.seconds for clip in used)
            padded += len(used) * max((clip.seconds for clip in used), default=0.0)
        planned = sum(len(window) for _, window in self._shares(step)[self.rank])
        return StepShare(batches, planned, bad, hopeless, seconds, padded, self._traffic())

    def _traffic(self) -> Traffic | None:
        if not isinstance(self.folder, Remote):
            return None
        before, self._before = self._before, traffic()
        return self._before.since(before)

    def passes(self, step: int) -> int:
        """How many passes each rank makes in `step`: as many as the one with the most to do needs."""
        planned = self._shares(step)
        lengths = ([sum(d.entry.seconds for d in window) for _, window in own] for own in planned)
        return self.limits.passes(map(len, planned), lengths)

    def active(self, step: int) -> list[int]:
        """Rows of the adapters that take part in `step`."""
        rows = enumerate(self.adapters)
        return [row for row, own in rows if step < own.steps and row not in self.stopped]

    def idle(self, step: int) -> int:
        """How many ranks have no clip of `step`."""
        return sum(not share for share in self._shares(step)) if step < self.steps else 0

    def keys(self, step: int) -> list[str]:
        """Every clip of `step`, of all ranks, as planned."""
        return [d.entry.key for share in self._shares(step) for _, window in share for d in window]

    def samples_from(self, first: int) -> Iterator[Sample]:
        """This rank's samples from step `first` on, as planned; clips may come again."""
        for step in range(first, self.steps):
            for _, window in self._shares(step)[self.rank]:
                yield from window

    def _windows(self, step: int, bad: list[Bad]) -> tuple[list[Window], int]:
        """This rank's batches of `step`, and the number of missing clips."""
        mine = self._shares(step)[self.rank]
        if self._known is not None:
            return [[(self._without_audio(d, row), d) for d in window] for row, window in mine], 0
        hopeless = 0
        made: dict[int, dict[int, tuple[Clip, Sample]]] = {}  # by reader, then by the sample's number
        for row in self.active(step):
            reader = self._reader_of[row]
            if reader not in made:
                clips = self._readers[reader].step(step)
                made[reader] = {sample.number: (clip, sample) for clip, sample in clips.clips}
                bad += clips.bad
                hopeless += clips.hopeless
        found: list[Window] = []
        for row, window in mine:
            own = made[self._reader_of[row]]
            there = [own[sample.number] for sample in window if sample.number in own]
            if there:
                found.append([(replace(clip, row=row), sample) for clip, sample in there])
        return found, hopeless

    def _without_audio(self, sample: Sample, row: int) -> Clip:
        """A clip whose way through the lower layers is kept: only its transcript is needed."""
        assert self._known is not None
        return without_audio(
            sample.entry.key, self._known[sample.entry.key], sample.shard.language, row
        )

    def _batch(self, sampled: list[Window], bad: list[Bad]) -> tuple[AdapterBatch, list[Clip], int]:
        """One micro-batch, the clips in it, and how many clips are missing."""
        missing = 0
        # What is joined has one weight.
        parts = (itertools.groupby(window, key=lambda own: own[0].weight) for window in sampled)
        sampled = [list(own) for part in parts for _, own in part]
        whole = [joined([clip for clip, _ in window]) for window in sampled]
        try:
            return self._training_batch(whole), whole, missing
        except UserError:
            # The base refuses one, such as for a transcript longer than it can write. What it refuses
            # joined is processed clip by clip, which shows the bad one.
            used = []
            for clip, window in zip(whole, sampled, strict=True):
                if self._refusal(clip) is None:
                    used.append(clip)
                    continue
                for part, sample in window:
                    why = self._refusal(part)
                    found = (part, sample) if why is None else None
                    if why is not None:
                        bad.append(Bad("refused", sample.shard.path, sample.entry.key, why))
                        reader = self._readers[self._reader_of[part.row]]
                        found = reader.instead(sample, bad, self._refusal)
                    if found is None:
                        missing += 1
                    else:
                        used.append(replace(found[0], row=part.row))
            return self._training_batch(used), used, missing

    def _refusal(self, clip: Clip) -> str | None:
        """Why the base can't be trained on `clip`; None where it can."""
        try:
            self._training_batch([clip])
        except UserError as e:
            return str(e)
        return None

    def _training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        clips = clips or [silent_clip(self.adapters[0].languages[0])]
        if not self.share and self._known is None:
            batch = self.family.training_batch(clips)
        else:
            distinct = list({clip.key: clip for clip in clips}.values())
            batch = self.family.shared_batch(clips, distinct, kept=self._known is not None)
        return batch.weighted([clip.weight for clip in clips])

    def _shares(self, step: int) -> list[list[tuple[int, list[Sample]]]]:
        """Each rank's windows of `step`: the row, and the samples joined in one window.

        Dealt as `ClipReader` deals, so that a rank has read what it is given here.
        """
        shares: list[list[tuple[int, list[Sample]]]] = [[] for _ in range(self.world_size)]
        for row in self.active(step):
            own, turn = self.adapters[row], self._reader_of[row]
            samples = own.plan.step(step)
            if own.join > 1:
                for window in windows(samples, own.plan.seed, step, own.join, self.family.window_s):
                    shares[rank_of(window[0].reader + turn, self.world_size)].append((row, window))
                continue
            ranks = dealt(samples, own.plan.readers, self.world_size, turn)
            for sample, rank in zip(samples, ranks, strict=True):
                shares[rank].append((row, [sample]))
        return shares
