"""Samples the clips of an adapter's step t: a pure function of its seed, t and the shard index.

    sample n    of the adapter's endless sequence is of the language that `mixing` says; it is that
                language's sample m, made by its virtual reader m % readers at its place m // readers
    reader      owns every readers-th shard of the language, and goes through them epoch after epoch:
                shards in a new order each, the clips of a shard in the order of its file
    pool k      a run of samples: a few places of every reader, so a short stretch of each open shard;
                dealt out to the POOL_STEPS steps of the pool, in a random order or by length
    step t      takes turns among LANES pools:

        t      0      1      2    …  11     12     13   …
        pool   0      1      2    …  11      0      1   …      each lasts for POOL_STEPS turns

A pool is what is read in one go, what clips are shuffled within, and what is sorted by length. The
lanes mix the clips of LANES pools, and let data workers each read pools of their own: steps that are
a divisor of LANES apart never share one.

Readers, not ranks, decide what is sampled. Ranks only share them out: reader r is read by rank
r % world_size. So the batch of a step is the same on any number of ranks, and to go on at step t
nothing is replayed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.entries import offsets_of, seconds_of
from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.mixing import Mix, mixed, quotas, shares
from salsa_dist.data.share import rank_of
from salsa_dist.errors import UserError

LANES = 12  # pools that steps take turns among; divided by 1, 2, 3, 4, 6 and 12 workers
POOL_STEPS = 8
_ENOUGH = 8  # clips of a step that are cut by themselves


@dataclass(frozen=True)
class Sample:
    """One clip of a step: its number among the adapter's samples, the reader that samples it, its epoch
    (how often that reader has gone through its shards), and where it lies."""

    number: int
    reader: int
    epoch: int
    shard: Shard
    entry: Entry


@dataclass(frozen=True)
class _Part:
    """A shard's clips that fit the window, in the order of its file."""

    shard: Shard
    entries: Sequence[Entry]


class AdapterPlan:
    """The samples of one adapter.

    Args:
        shards: those of its split, in all its languages.
        clips_per_step: samples of a step, over all ranks; None where `seconds_per_step` decides.
        readers: how many virtual readers the shards of a language are dealt to; a language with fewer
            shards has as many readers as shards.
        seed: the adapter's own.
        max_seconds: longer clips are left out; `left_out` counts them.
        seconds_per_step: audio of a step, over all ranks. A step's clips are then of similar lengths,
            and its audio is this on average: within a pool all steps have the same, but for parts of
            a clip.
        mix: how often each of several languages is sampled.

    Attributes:
        key: the same for plans that sample the same clips.
        seconds: of speech that it samples from.

    Raises:
        UserError: fewer shards than readers, or no clip that fits.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        clips_per_step: int | None,
        readers: int,
        seed: int,
        max_seconds: float,
        *,
        seconds_per_step: float | None = None,
        mix: Mix = Mix(),
    ) -> None:
        if len(shards) < readers:
            names = ", ".join(sorted({s.language for s in shards}))
            raise UserError(
                f"too few shards: {names} has {len(shards)} for {readers} readers; set "
                f"data.readers to {len(shards)} or fewer, or build smaller shards"
            )
        self.clips_per_step = clips_per_step
        self.readers = readers
        self.seed = seed
        self.left_out = 0
        seconds: dict[str, float] = {}
        parts: dict[str, list[_Part]] = {}
        for shard in sorted(shards, key=lambda s: s.path):
            # By columns: an index may have millions of entries.
            lengths = seconds_of(shard.entries)
            fits = lengths <= max_seconds
            own = (
                shard.entries
                if fits.all()
                else [shard.entries[i] for i in map(int, np.flatnonzero(fits))]
            )
            self.left_out += len(lengths) - len(own)
            parts.setdefault(shard.language, []).append(_Part(shard, own))
            before = seconds.get(shard.language, 0.0)
            seconds[shard.language] = before + sum(lengths[fits].tolist())
        self.seconds = sum(seconds.values())
        self.key = _key(parts, clips_per_step, seconds_per_step, readers, seed, mix)
        self._languages = []
        first = 0
        for language in sorted(parts):
            self._languages.append(_Language(parts[language], readers, first, max_seconds))
            # Languages with few shards start at different readers, so that ranks share them.
            first += self._languages[-1].readers
        clips = {name: own.clips for name, own in zip(sorted(parts), self._languages, strict=True)}
        self.clips = sum(clips.values())
        self.shares = shares(clips, mix)
        self._quotas = quotas(list(self.shares.values()))
        if clips_per_step is not None:
            self._pool_samples = clips_per_step * POOL_STEPS
        elif seconds_per_step is not None:
            mean = sum(self.shares[name] * seconds[name] / clips[name] for name in clips)
            if seconds_per_step < mean:
                raise UserError(
                    f"data.seconds_per_step is {seconds_per_step:g}, and a clip of "
                    f"{', '.join(clips)} lasts {mean:.1f} s on average: set it to several clips"
                )
            self._pool_samples = round(POOL_STEPS * seconds_per_step / mean)
        else:
            raise ValueError("a plan needs clips_per_step or seconds_per_step")
        self._pools: dict[int, list[list[Sample]]] = {}

    def step(self, t: int) -> list[Sample]:
        """The samples of step `t`."""
        return self._pool(pool_of(t))[t // LANES % POOL_STEPS]

    def replacement(self, sample: Sample, attempt: int) -> Sample:
        """The replacement of a bad `sample`: another clip of its language, from any shard.

        It depends on the sample and on `attempt` (0, 1, …) alone, so it is the same on all ranks.
        """
        own = next(x for x in self._languages if x.name == sample.shard.language)
        rng = np.random.default_rng([self.seed, sample.number, attempt, _REPLACEMENT])
        shard, entry = own.clip(int(rng.integers(own.clips)))
        return Sample(sample.number, sample.reader, sample.epoch, shard, entry)

    def longest(self, count: int) -> list[tuple[Shard, Entry]]:
        """The `count` longest clips that it samples from, the longest first."""
        found: list[tuple[float, Shard, Entry]] = []
        for part in (part for language in self._languages for part in language.parts):
            lengths = seconds_of(part.entries)
            for i in map(int, np.argsort(-lengths, kind="stable")[:count]):
                found.append((float(lengths[i]), part.shard, part.entries[i]))
        found.sort(key=lambda clip: (-clip[0], clip[1].path, clip[2].key))
        return [(shard, entry) for _, shard, entry in found[:count]]

    def _pool(self, k: int) -> list[list[Sample]]:
        if k not in self._pools:
            if len(self._pools) >= 2 * LANES:
                self._pools.pop(next(iter(self._pools)))
            self._pools[k] = self._make_pool(k)
        return self._pools[k]

    def _make_pool(self, k: int) -> list[list[Sample]]:
        by_reader: dict[int, list[Sample]] = {}
        for n in range(k * self._pool_samples, (k + 1) * self._pool_samples):
            language, m = mixed(self.seed, n, self._quotas)
            sample = self._languages[language].sample(self.seed, n, m)
            by_reader.setdefault(sample.reader % self.readers, []).append(sample)
        rng = np.random.default_rng([self.seed, k, _POOL])
        deal = _by_number if self.clips_per_step is not None else _by_length
        steps = deal([by_reader[r] for r in sorted(by_reader)], rng)
        return [steps[i] for i in rng.permutation(POOL_STEPS)]


def dealt(samples: Sequence[Sample], readers: int, world_size: int, turn: int = 0) -> list[int]:
    """The rank of each sample of a step.

    A rank has readers of its own, or, where ranks are more than readers, a run of a reader's samples.
    What is sampled does not depend on it.

    Args:
        turn: the draw's number among those of a run. Each begins one rank further, so that ranks which
            get more of one get less of another.
    """
    if world_size <= readers:
        return [rank_of(sample.reader + turn, world_size) for sample in samples]
    ranks = [0] * len(samples)
    for place, i in enumerate(sorted(range(len(samples)), key=lambda i: samples[i].reader)):
        ranks[i] = rank_of(place * world_size // len(samples) + turn, world_size)
    return ranks


def pool_of(t: int) -> int:
    """The pool that step `t` is dealt from."""
    lane, turn = t % LANES, t // LANES
    return turn // POOL_STEPS * LANES + lane


def steps_of(pool: int) -> range:
    """The steps that are dealt from a pool."""
    rounds, lane = divmod(pool, LANES)
    first = rounds * POOL_STEPS * LANES + lane
    return range(first, first + POOL_STEPS * LANES, LANES)


class _Language:
    """One language's shards, divided among its readers."""

    def __init__(self, parts: list[_Part], readers: int, first: int, max_seconds: float) -> None:
        self.name = parts[0].shard.language
        self.readers = min(readers, len(parts))
        self._first = first
        self._total_readers = readers
        self.parts = parts
        self._dealt = [parts[r :: self.readers] for r in range(self.readers)]
        self._sizes = [tuple(len(p.entries) for p in dealt) for dealt in self._dealt]
        self._ends = np.cumsum([len(p.entries) for p in parts])
        self.clips = int(self._ends[-1])
        for dealt, sizes in zip(self._dealt, self._sizes, strict=True):
            if not sum(sizes):
                raise UserError(
                    f"{self.name}: every clip of {dealt[0].shard.path} is longer than the audio window "
                    f"of {max_seconds:g} s; set a longer window_s"
                )

    def sample(self, seed: int, n: int, m: int) -> Sample:
        """Sample `m` of the language, which is sample `n` of the adapter."""
        reader, place = m % self.readers, m // self.readers
        sizes = self._sizes[reader]
        epoch, place = divmod(place, sum(sizes))
        globally = (self._first + reader) % self._total_readers
        order, ends = _shard_order(seed, self._first + reader, epoch, sizes)
        i = int(np.searchsorted(ends, place, side="right"))
        part = self._dealt[reader][order[i]]
        within = place - (int(ends[i - 1]) if i else 0)
        return Sample(n, globally, epoch, part.shard, part.entries[within])

    def clip(self, i: int) -> tuple[Shard, Entry]:
        """The language's clip number `i`."""
        shard = int(np.searchsorted(self._ends, i, side="right"))
        part = self.parts[shard]
        return part.shard, part.entries[i - int(self._ends[shard] - len(part.entries))]


# An order is made once and serves a reader's whole stay in an epoch.
@lru_cache(maxsize=1024)
def _shard_order(
    seed: int, reader: int, epoch: int, sizes: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A reader's shards in the order of an epoch, and where each ends in it."""
    order = np.random.default_rng([seed, reader, epoch]).permutation(len(sizes))
    return order, np.cumsum([sizes[i] for i in order])


def _by_number(readers: Sequence[list[Sample]], rng: np.random.Generator) -> list[list[Sample]]:
    """Equally many samples per step, in random order, and as equally many of each reader as can be."""
    placed: list[tuple[float, int, Sample]] = []
    for r, own in enumerate(readers):
        shuffled = [own[i] for i in rng.permutation(len(own))]
        placed += [((i + 0.5) / len(own), r, sample) for i, sample in enumerate(shuffled)]
    placed.sort(key=lambda item: item[:2])
    size = len(placed) // POOL_STEPS
    return [[d for _, _, d in placed[j * size : (j + 1) * size]] for j in range(POOL_STEPS)]


def _by_length(readers: Sequence[list[Sample]], rng: np.random.Generator) -> list[list[Sample]]:
    """Equally many seconds per step, the shortest clips in the first and the longest in the last.

    Where there are clips enough, groups of readers are cut by themselves, so that ranks, which share
    out the readers, have equally much to do.
    """
    clips = sum(map(len, readers)) / POOL_STEPS
    fitting = [g for g in range(1, len(readers) + 1) if len(readers) % g == 0 and clips / g >= _ENOUGH]
    groups = max(fitting, default=1)
    steps: list[list[Sample]] = [[] for _ in range(POOL_STEPS)]
    for g in range(groups):
        own = [sample for reader in readers[g::groups] for sample in reader]
        own.sort(key=lambda d: (d.entry.seconds, d.number))
        seconds = np.array([d.entry.seconds for d in own])
        middle = (np.cumsum(seconds) - seconds / 2) / seconds.sum() * POOL_STEPS
        for j, sample in zip(np.floor(middle), own, strict=True):
            steps[int(j)].append(sample)
    for step in steps:
        if not step:  # only where a step is hardly more than one clip
            fullest = max(steps, key=len)
            step.append(fullest.pop(int(rng.integers(len(fullest)))))
    return steps


def of_rank(plan: AdapterPlan, t: int, rank: int, world_size: int, turn: int = 0) -> list[Sample]:
    """The samples of step `t` that are a rank's; see `dealt`."""
    samples = plan.step(t)
    ranks = dealt(samples, plan.readers, world_size, turn)
    return [sample for sample, owner in zip(samples, ranks, strict=True) if owner == rank]


_POOL = 0x504F4F4C  # keep the random numbers of pools and replacements apart from those of orders
_REPLACEMENT = 0x5245504C


def _key(parts: Mapping[str, Sequence[_Part]], *settings: object) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for own in parts.values():
        for part in own:
            digest.update(part.shard.path.encode())
            digest.update(offsets_of(part.entries).tobytes())
    return digest.hexdigest()
