"""Reads one rank's clips of one adapter from the shards, step by step.

    plan ──pool──► this rank's samples ──one open a shard, large reads──► bytes, held until their step
    step t ──► its bytes ──decode──► Clips, and the Bad samples that others stand in for

A pool's bytes are read when its first step is asked for, and let go as its steps are made. A sample
that can't be used is replaced by one that depends on the sample alone, so by the same on every number
of ranks and workers. training/batches.py makes one reader per adapter, and batches of its clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import get_worker_info

from salsa_dist.data import last_read
from salsa_dist.data.audio import Audio
from salsa_dist.data.augment import Augment
from salsa_dist.data.clip import Clip
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.patience import Waited
from salsa_dist.data.sampling import LANES, POOL_STEPS, AdapterPlan, Sample, of_rank, pool_of, steps_of
from salsa_dist.data.shard_cache import cache_of
from salsa_dist.data.shards import BadSample, Bytes, read_ranges, read_sample
from salsa_dist.data.word_times import moved, words_of
from salsa_dist.places import Folder, Remote

ATTEMPTS = 16  # replacements tried for one sample
DAMAGED = ("audio", "transcript", "tar")  # what a link may have done to a sample
AHEAD_S = 30.0  # for which shards of a store are fetched ahead

# `refused`: the base can't learn from it, such as for a transcript longer than it can write.
BAD_KINDS = ("audio", "transcript", "bounds", "tar", "shard", "refused")


@dataclass(frozen=True)
class Bad:
    """A bad sample: one of BAD_KINDS, its place, and the reason in one line."""

    kind: str
    shard: str
    key: str
    why: str


@dataclass(frozen=True)
class StepClips:
    """A rank's clips of one step, and the samples that were replaced.

    Attributes:
        clips: each with its sample, which may be a replacement.
        hopeless: samples whose replacements could none be used; their clips are missing.
    """

    clips: list[tuple[Clip, Sample]]
    bad: list[Bad]
    hopeless: int


def read_clip(folder: Folder, shard: Shard, entry: Entry, row: int = -1) -> Clip:
    """Read and decode one clip.

    Raises:
        BadSample: it can't be used.
    """
    try:
        return _read_once(folder, shard, entry, row)
    except BadSample as e:
        if not _fetch_again(folder, shard, e):
            raise
    return _read_once(folder, shard, entry, row)


def _fetch_again(folder: Folder, shard: Shard, error: BadSample) -> bool:
    """Whether a sample may be sound if fetched again; what is cached of its shard is then in doubt."""
    if error.kind not in DAMAGED or not isinstance(folder, Remote):
        return False
    cache_of(folder.cache).doubt(folder, shard)
    return True


def _read_once(folder: Folder, shard: Shard, entry: Entry, row: int) -> Clip:
    path = folder / shard.path
    ((_, _, raw),) = read_samples(folder, [(shard, [entry])])
    if isinstance(raw, BadSample):
        raise raw
    audio, facts = read_sample(raw, path, entry.key)
    return clip_of(entry.key, audio, facts, shard.language, row)


def clip_of(key: str, audio: Audio, facts: Mapping[str, Any], language: str, row: int = -1) -> Clip:
    """What `read_sample` gave, as a clip."""
    text, weight = str(facts["text"]), float(facts.get("loss_weight", 1.0))
    speech = bool(text.strip())
    return Clip(key, audio, text, language, row, facts, speech, weight, words_of(facts))


def read_samples(
    folder: Folder, wanted: Sequence[tuple[Shard, Sequence[Entry]]], waited: Waited | None = None
) -> Iterator[tuple[Shard, Entry, Bytes | BadSample]]:
    """The bytes of samples of several shards, or why a sample has none.

    Args:
        waited: by the step that needs them, for others; None: for none.
    """
    if isinstance(folder, Remote):
        found = cache_of(folder.cache).read(folder, wanted, waited or Waited())
    else:
        found = (
            (shard, entry, raw)
            for shard, entries in wanted
            for entry, raw in read_ranges(folder / shard.path, entries)
        )
    for sample in found:
        last_read.now()
        yield sample


class ClipReader:
    """Reads one rank's clips of one adapter.

    Args:
        folder: of the shards.
        plan: the adapter's.
        steps: how many it has.
        rank, world_size: whose share.
        max_seconds: of the longest clip that is used: the training window.
        augment: what is done to the clips; None: nothing.
        turn: of its draw among those of the run; see `dealt`.
    """

    def __init__(
        self,
        folder: Folder,
        plan: AdapterPlan,
        steps: int,
        rank: int,
        world_size: int,
        max_seconds: float,
        augment: Augment | None = None,
        turn: int = 0,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.steps = steps
        self.rank = rank
        self.world_size = world_size
        self.max_seconds = max_seconds
        self.augment = augment
        self.turn = turn
        self._held: dict[int, dict[int, Bytes | BadSample]] = {}
        self._ahead = _Ahead()
        self._waited = Waited()  # of the last step

    def step(self, t: int) -> StepClips:
        """The clips of step `t` that are this rank's."""
        own = of_rank(self.plan, t, self.rank, self.world_size, self.turn)
        self._waited = Waited()
        if isinstance(self.folder, Remote):
            self._fetch_ahead(self.folder, t)
        clips: list[tuple[Clip, Sample]] = []
        bad: list[Bad] = []
        for sample in own:
            found = self._usable(sample, self._bytes(t, sample), bad) or self.instead(sample, bad)
            if found is not None:
                clips.append(found)
        return StepClips(clips, bad, hopeless=len(own) - len(clips))

    def instead(
        self, sample: Sample, bad: list[Bad], usable: Callable[[Clip], str | None] = lambda clip: None
    ) -> tuple[Clip, Sample] | None:
        """A clip in place of `sample`, which could not be used; None where ATTEMPTS don't give one.

        Args:
            bad: samples that can't be used either are put here.
            usable: says why a clip won't do, None where it will.
        """
        for attempt in range(ATTEMPTS):
            other = self.plan.replacement(sample, attempt)
            ((_, _, raw),) = self._read([(other.shard, [other.entry])])
            found = self._usable(other, raw, bad)
            if found is None:
                continue
            why = usable(found[0])
            if why is None:
                return found
            bad.append(Bad("refused", other.shard.path, other.entry.key, why))
        return None

    def _usable(
        self, sample: Sample, raw: Bytes | BadSample, bad: list[Bad], again: bool = True
    ) -> tuple[Clip, Sample] | None:
        path = self.folder / sample.shard.path
        try:
            if isinstance(raw, BadSample):
                raise raw
            audio, facts = read_sample(raw, path, sample.entry.key)
            last_read.now()  # decoded: a step may have thousands
            # Its `row` comes later, from `StepBatches`: adapters share what is read.
            clip = clip_of(sample.entry.key, audio, facts, sample.shard.language)
            clip = replace(clip, facts={})  # held until its step
            if clip.seconds > self.max_seconds + 1e-6:
                claimed = f"{sample.entry.seconds:.1f} s in the index"
                why = f"lasts {clip.seconds:.1f} s, {claimed}: more than the audio window"
                raise BadSample(path, sample.entry.key, why, "bounds")
        except BadSample as e:
            if again and _fetch_again(self.folder, sample.shard, e):
                ((_, _, raw),) = self._read([(sample.shard, [sample.entry])])
                return self._usable(sample, raw, bad, again=False)
            bad.append(Bad(e.kind, sample.shard.path, sample.entry.key, str(e)))
            return None
        if self.augment is not None:
            changed = self.augment(audio, self.plan.seed, clip.key, sample.epoch, self.max_seconds)
            words = clip.words and moved(clip.words, longer=len(changed) / max(1, len(audio)))
            clip = replace(clip, audio=changed, words=words)
        return clip, sample

    def _bytes(self, t: int, sample: Sample) -> Bytes | BadSample:
        pool = pool_of(t)
        held = self._held.get(pool)
        if held is None or sample.number not in held:
            # Steps that were never finished, as at the end of a run, must not pile up.
            while len(self._held) >= 2 * LANES:
                self._held.pop(next(iter(self._held)))
            held = self._held[pool] = self._read_pool(pool, t)
        raw = held.pop(sample.number)
        if not held:
            del self._held[pool]
        return raw

    def _read_pool(self, pool: int, first: int) -> dict[int, Bytes | BadSample]:
        """The bytes that this process needs of a pool from step `first` on, by sample."""
        by_place: dict[tuple[str, int], list[int]] = {}
        wanted = self._wanted(pool, first)
        for shard, samples in wanted:
            # A pool that is longer than an epoch may sample a clip twice.
            for sample in samples:
                by_place.setdefault((shard.path, sample.entry.offset), []).append(sample.number)
        entries = [(s, list({d.entry.offset: d.entry for d in own}.values())) for s, own in wanted]
        found: dict[int, Bytes | BadSample] = {}
        for shard, entry, raw in self._read(entries):
            found.update((number, raw) for number in by_place[shard.path, entry.offset])
        return found

    def _read(
        self, wanted: Sequence[tuple[Shard, Sequence[Entry]]]
    ) -> Iterator[tuple[Shard, Entry, Bytes | BadSample]]:
        return read_samples(self.folder, wanted, self._waited)

    def _wanted(self, pool: int, first: int) -> list[tuple[Shard, list[Sample]]]:
        """The entries that this process needs of a pool from step `first` on, by shard."""
        workers = _workers()
        by_shard: dict[str, tuple[Shard, list[Sample]]] = {}
        for t in steps_of(pool):
            if (t - first) % workers == 0 and first <= t < self.steps:
                for sample in of_rank(self.plan, t, self.rank, self.world_size, self.turn):
                    by_shard.setdefault(sample.shard.path, (sample.shard, []))[1].append(sample)
        return [by_shard[path] for path in sorted(by_shard)]

    def _fetch_ahead(self, folder: Remote, t: int) -> None:
        """Begin to fetch the pools that this process reads in the time to come."""
        cache = cache_of(folder.cache)
        workers = _workers()
        for step in range(t + workers, min(self._ahead.until(t), self.steps), workers):
            pool = pool_of(step)
            if pool not in self._held and self._ahead.first_time(pool):
                for shard, samples in self._wanted(pool, step):
                    cache.start(folder, shard, [sample.entry for sample in samples])


class _Ahead:
    """Decides how many steps to read ahead: the clips of the next AHEAD_S seconds."""

    def __init__(self) -> None:
        self._begun: dict[int, None] = {}
        self._last: tuple[int, float] | None = None
        self._step_s = AHEAD_S / LANES  # of a step, as measured of late

    def until(self, t: int) -> int:
        """The step up to which clips are to be fetched; called at each step `t` in order."""
        now = time.monotonic()
        if self._last is not None and t > self._last[0]:
            step_s = (now - self._last[1]) / (t - self._last[0])
            self._step_s += 0.2 * (step_s - self._step_s)
        self._last = (t, now)
        steps = round(AHEAD_S / max(self._step_s, 1e-3))
        # The lanes that come anyway, and no more than a plan holds.
        return t + min(max(steps, LANES), (POOL_STEPS - 1) * LANES)

    def first_time(self, pool: int) -> bool:
        if pool in self._begun:
            return False
        while len(self._begun) >= 4 * LANES:
            self._begun.pop(next(iter(self._begun)))
        self._begun[pool] = None
        return True


def _workers() -> int:
    worker = get_worker_info()
    return worker.num_workers if worker else 1


def first_clips(
    folder: Folder,
    index: ShardIndex,
    language: str,
    count: int,
    window_s: float,
    split: str = "train",
) -> list[Clip]:
    """The first clips with speech of a language and split that fit the window, in the order of the
    shards."""
    clips: list[Clip] = []
    for shard in index.select(split, language):
        for entry in shard.entries:
            if len(clips) == count:
                return clips
            if entry.seconds <= window_s:
                clip = read_clip(folder, shard, entry)
                clips += [clip] if clip.speech else []
    return clips
