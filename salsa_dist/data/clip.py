"""One utterance, from a shard or a file to a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000

Word = tuple[str, float, float]  # a word of a transcript, its start and its end in seconds


@dataclass(frozen=True)
class Clip:
    """Audio and the facts about it.

    Attributes:
        key: stable name, unique in its shards.
        audio: (samples,) float32 at 16,000 Hz, mono.
        text: the transcript; empty where it is not known, or where nobody speaks.
        language: code of the language, as the shards have it.
        row: the row of the bank whose adapter steers this clip; -1 for none.
        facts: what else its shard says of it, such as speaker and age.
        speech: false where nobody speaks: training then teaches that the transcript ends at once.
        weight: what the losses of its labels are multiplied by in training.
        words: those of the transcript with their times; None where they are not known.
    """

    key: str
    audio: NDArray[np.float32]
    text: str
    language: str
    row: int = -1
    facts: Mapping[str, Any] = field(default_factory=dict)
    speech: bool = True
    weight: float = 1.0
    words: tuple[Word, ...] | None = None

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


def silent_clip(language: str) -> Clip:
    """Half a second of nothing, for a rank that must take part in a pass but has no clip left."""
    return Clip("", np.zeros(SAMPLE_RATE // 2, np.float32), "", language)
