"""Divides utterances into train, dev and test, and orders them in the shards.

    own split               as the corpus has it; nothing is added to its own dev and test
    none, speakers known    whole speakers are dealt to test, then to dev, the rest is train
    none, else              whole texts are dealt, so that no text is in two splits

Speakers count as known where every utterance has one and there are three or more: one a split. Who
comes first is decided by a hash of the seed and the speaker or text, and among fewer than ten speakers
by who says least, so that most stays to train on. Nothing depends on the order in which a corpus is
read. `lint` holds each language to the way that the index names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from salsa_dist.corpus.text import same
from salsa_dist.corpus.utterance import SPLITS, Ask, Utterance

MIN_SPEAKERS = 3
# Fewer are so unequal that one may say half of all: who says least is held out.
FEW_SPEAKERS = 10

OWN, BY_SPEAKER, BY_TEXT = "the corpus's own", "by speaker", "by text"


def deal(utterances: Iterable[Utterance], ask: Ask) -> tuple[dict[str, list[Utterance]], str]:
    """The splits of one language, as they are (no order is kept), and how they were made."""
    parts: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    left = []
    for utterance in utterances:
        if utterance.split in parts:
            parts[utterance.split].append(utterance)
        else:
            left.append(utterance)
    how = [OWN] if any(parts.values()) else []
    if left:
        ask = replace(
            ask,
            dev_share=0.0 if parts["dev"] else ask.dev_share,
            test_share=0.0 if parts["test"] else ask.test_share,
        )
        speakers = {u.speaker for u in left}
        by_speaker = None not in speakers and len(speakers) >= MIN_SPEAKERS
        how.append(BY_SPEAKER if by_speaker else BY_TEXT)
        units: dict[str, list[Utterance]] = {}
        for utterance in left:
            unit = str(utterance.speaker) if by_speaker else same(utterance.text) or utterance.key
            units.setdefault(unit, []).append(utterance)
        for split, part in _deal_units(units, len(left), ask, by_speaker).items():
            parts[split] += part
    return {split: part for split, part in parts.items() if part}, " and ".join(how)


def may_share(how: str) -> str | None:
    """What splits made by `how` may have in common: "speaker", "text" or nothing (None).

    A recipe that splits by itself says more after a comma: "by text, in whole levels".
    """
    return {BY_SPEAKER: "text", BY_TEXT: "speaker"}.get(how.partition(",")[0])


def shuffled(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Utterances in an order that mixes speakers and recordings, whatever the given order."""
    return sorted(utterances, key=lambda u: (_hash(seed, "order", u.key), u.key))


def _deal_units(
    units: dict[str, list[Utterance]], total: int, ask: Ask, by_speaker: bool
) -> dict[str, list[Utterance]]:
    parts: dict[str, list[Utterance]] = {"test": [], "dev": [], "train": []}
    order = sorted(units, key=lambda unit: (_hash(ask.seed, "unit", unit), unit))
    if by_speaker and len(units) < FEW_SPEAKERS:
        order.sort(key=lambda unit: len(units[unit]))
    for number, unit in enumerate(order, 1):
        if number == len(order):
            split = "train"  # whatever the shares, something is left to learn from
        elif by_speaker and number == len(order) - 1 and ask.dev_share and not parts["dev"]:
            split = "dev"
        elif len(parts["test"]) < ask.test_share * total:
            split = "test"
        elif len(parts["dev"]) < ask.dev_share * total:
            split = "dev"
        else:
            split = "train"
        parts[split] += units[unit]
    return parts


def _hash(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode("utf-8", "surrogatepass")).digest()
