"""Which clips an adapter sees at its step t: a pure function of its seed, t and the shard index.

    draw n = t * clips_per_step + i     of the adapter's endless sequence of draws
    reader n % readers                  each virtual reader owns every readers-th shard
    place  n // readers                 in that reader's sequence: epoch after epoch, the shards in
                                        a new order each, the samples of a shard in a new order each

Readers, not ranks, decide what is drawn. Ranks only share them out: reader r is read by rank
r % world_size. So the batch of a step is the same on any number of ranks, and to go on at step t
nothing is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.index import Entry, Shard
from salsa_dist.errors import UserError


@dataclass(frozen=True)
class Draw:
    """One clip of a step: the reader that draws it, and where it lies."""

    reader: int
    shard: Shard
    entry: Entry


class AdapterPlan:
    """The draws of one adapter.

    Args:
        shards: the shards of its language and split.
        clips_per_step: draws of a step, over all ranks.
        readers: how many virtual readers the shards are dealt to.
        seed: the adapter's own.
        max_seconds: longer clips are left out; `left_out` counts them.

    Raises:
        UserError: fewer shards than readers, or no clip that fits.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        clips_per_step: int,
        readers: int,
        seed: int,
        max_seconds: float,
    ) -> None:
        language = shards[0].language
        if len(shards) < readers:
            raise UserError(
                f"too few shards: {language} has {len(shards)} for {readers} readers; set "
                f"data.readers to {len(shards)} or fewer, or build smaller shards"
            )
        self.clips_per_step = clips_per_step
        self.readers = readers
        self.seed = seed
        fitting: list[tuple[Shard, list[Entry]]] = []
        self.left_out = 0
        for shard in sorted(shards, key=lambda s: s.path):
            entries = [e for e in shard.entries if e.seconds <= max_seconds]
            self.left_out += len(shard.entries) - len(entries)
            fitting.append((shard, entries))
        self._dealt = [fitting[r::readers] for r in range(readers)]
        self.clips = sum(len(entries) for _, entries in fitting)
        for dealt in self._dealt:
            if not any(entries for _, entries in dealt):
                raise UserError(
                    f"{language}: every clip of {dealt[0][0].path} is longer than the audio window "
                    f"of {max_seconds:g} s; set a longer base.window_s"
                )
        self._sizes = [tuple(len(entries) for _, entries in dealt) for dealt in self._dealt]

    def step(self, t: int) -> list[Draw]:
        """The draws of step `t`, `clips_per_step` of them."""
        return [self._draw(t * self.clips_per_step + i) for i in range(self.clips_per_step)]

    def _draw(self, n: int) -> Draw:
        reader, place = n % self.readers, n // self.readers
        sizes = self._sizes[reader]
        epoch, place = divmod(place, sum(sizes))
        shards, ends = _shard_order(self.seed, reader, epoch, sizes)
        i = int(np.searchsorted(ends, place, side="right"))
        shard, entries = self._dealt[reader][shards[i]]
        within = place - (int(ends[i - 1]) if i else 0)
        order = _sample_order(self.seed, reader, epoch, int(shards[i]), len(entries))
        return Draw(reader, shard, entries[order[within]])


# An order is made once and serves a reader's whole stay in an epoch, or in a shard.
@lru_cache(maxsize=256)
def _shard_order(
    seed: int, reader: int, epoch: int, sizes: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A reader's shards in the order of an epoch, and where each ends in it."""
    order = np.random.default_rng([seed, reader, epoch]).permutation(len(sizes))
    return order, np.cumsum([sizes[i] for i in order])


@lru_cache(maxsize=256)
def _sample_order(seed: int, reader: int, epoch: int, shard: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, reader, epoch, shard]).permutation(count)
