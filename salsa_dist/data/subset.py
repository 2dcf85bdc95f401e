"""A part of a corpus: a number of minutes, chosen by a seed; or the first N clips.

    clips of a shard in an order of their own (seed, key)   k7 k2 k9 k1 …
    10 minutes                                              └───┘
    1 hour                                                  └─────────┘

Every shard gives its share, a prefix of its order. So the clips of 10 minutes are among those of
1 hour, the readers all have some, and which clips are chosen does not depend on readers or ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.errors import UserError


def take_minutes(shards: Sequence[Shard], minutes: float, seed: int) -> list[Shard]:
    """`shards` with only so many minutes of their clips, at least one clip a shard.

    Args:
        shards: of one language and split.
        minutes: how much speech; each shard's share is full with the clip that reaches it.

    Raises:
        UserError: there is less than that.
    """
    there = sum(shard.seconds for shard in shards)
    if minutes * 60 > there + 0.5:
        raise UserError(
            f"{shards[0].language} has {there / 60:.1f} minutes to train on, {minutes:g} are asked for"
        )
    return [_part(shard, minutes * 60 / there, seed) for shard in shards]


def training_shards(
    index: ShardIndex, languages: Sequence[str], minutes: float | None, seed: int
) -> list[Shard]:
    """The shards that an adapter is trained on: all of its languages, or only `minutes` of one.

    Raises:
        UserError: a language has none, or less than that.
    """
    shards = [shard for name in languages for shard in index.select("train", name)]
    return shards if minutes is None else take_minutes(shards, minutes, seed)


def first_entries(
    shards: Sequence[Shard], most: int | None, longest_s: float
) -> list[tuple[Shard, Entry]]:
    """At most `most` clips of a language and split, sorted by key, none longer than `longest_s`.

    What is measured on dev clips takes these, whether by loss or by decoding.
    """
    fitting = [(s, entry) for s in shards for entry in s.entries if entry.seconds <= longest_s]
    return sorted(fitting, key=lambda one: one[1].key)[:most]


def _part(shard: Shard, share: float, seed: int) -> Shard:
    chosen: set[str] = set()
    seconds = 0.0
    for entry in sorted(shard.entries, key=lambda e: _order(seed, e)):
        if chosen and seconds >= share * shard.seconds:
            break
        chosen.add(entry.key)
        seconds += entry.seconds
    entries = tuple(e for e in shard.entries if e.key in chosen)
    return replace(shard, entries=entries, samples=len(entries), seconds=seconds)


def _order(seed: int, entry: Entry) -> bytes:
    return hashlib.sha256(f"{seed} {entry.key}".encode()).digest()
