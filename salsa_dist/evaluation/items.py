"""What an evaluation transcribes: which clips with which adapters, in batches.

config, index, rows ──items_of──> Item, Item, …  ──batched──> batches; a clip's items are in one
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from salsa_dist.config import Config
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.subset import first_entries
from salsa_dist.speech_llms import long_audio

BARE_ROW = -2  # row of the base with no adapters beside it, not even ones that are off


@dataclass(frozen=True)
class Item:
    """One clip to transcribe with one adapter, or with none (row -1, or BARE_ROW)."""

    shard: Shard
    entry: Entry
    language: str
    row: int


def batched(items: Sequence[Item], size: int, window: float) -> list[list[Item]]:
    """`items` in order, as many a batch as make `size` clips or pieces of clips; always one.

    What is to be transcribed of one clip is parted only where it is too much for a batch.
    """
    batches: list[list[Item]] = []
    room = 0
    for _, group in groupby(items, key=lambda item: (item.language, item.entry.key)):
        of_clip = list(group)
        pieces = long_audio.most_pieces(of_clip[0].entry.seconds, window)
        if room < pieces * len(of_clip) <= size:
            room = 0
        for item in of_clip:
            if not batches or pieces > room:
                batches.append([])
                room = size
            batches[-1].append(item)
            room -= pieces
    return batches


def items_of(config: Config, index: ShardIndex, rows: Sequence[int], window: float) -> Iterator[Item]:
    split, most = config.evaluation.split, config.evaluation.clips
    others: Sequence[str] = ()
    if isinstance(config.evaluation.forgetting, list):
        others = config.evaluation.forgetting
    elif config.evaluation.forgetting:
        others = sorted({shard.language for shard in index.shards if shard.split == split})
    languages = dict.fromkeys(language for a in config.adapters for language in a.languages)
    longest_s = window if most is not None else math.inf
    for language in dict.fromkeys([*languages, *others]):
        own = [
            r for r in rows if r < 0 or language in others or language in config.adapters[r].languages
        ]
        for shard, entry in first_entries(index.select(split, language), most, longest_s):
            yield from (Item(shard, entry, language, row) for row in own)
