"""Further counts of a step, summed over all ranks in the step's all-reduce.

StepShare ──of──► StepCounts ──numbers──► sum over all ranks ──from_numbers──► StepCounts of all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from salsa_dist.data.traffic import Traffic
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.training.batches import StepShare


@dataclass(frozen=True)
class StepCounts:
    """Counts of one rank's share, or their sums over all ranks.

    Attributes:
        clips: planned clips.
        bad: bad samples, and clips without a replacement.
        seconds: seconds of audio.
        padded_seconds: seconds of audio with padding.
        waited_s: seconds for which ranks waited for clips.
        windows: audio windows with labels: as many as clips, or fewer where clips are joined.
        tokens: of the LLM or decoder, without padding; 0 for a base without one.
        store: traffic with the store; None if the shards are in a folder.
    """

    clips: float
    bad: float
    seconds: float
    padded_seconds: float
    waited_s: float
    windows: float
    tokens: float
    store: Traffic | None

    @classmethod
    def of(cls, share: StepShare, waited_s: float) -> StepCounts:
        """The counts of one rank's share."""
        bad = float(len(share.bad) + share.hopeless)
        windows = tokens = 0.0
        for batch in share.batches:
            ends = _ends(batch)
            windows += int((ends > 0).sum())
            # Where a loss is of whole windows, the positions are frames.
            tokens += int(ends.sum()) if batch.label_counts is None else 0
        return cls(
            *(share.clips, bad, share.seconds, share.padded_seconds, waited_s),
            *(windows, tokens, share.store),
        )

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> StepCounts:
        """The reverse of `numbers`."""
        clips, bad, seconds, padded_seconds, waited_s, windows, tokens, *store = numbers
        had = Traffic(*store) if store else None
        return cls(clips, bad, seconds, padded_seconds, waited_s, windows, tokens, had)

    def numbers(self) -> list[float]:
        """The counts as a list, of the same length on all ranks."""
        store = astuple(self.store) if self.store is not None else ()
        own = (self.clips, self.bad, self.seconds, self.padded_seconds, self.waited_s)
        return [*own, self.windows, self.tokens, *store]


def _ends(batch: AdapterBatch) -> Tensor:
    """(batch,) int64, the positions up to each sample's last label; 0 for one without labels."""
    places = torch.arange(1, batch.label_positions.shape[1] + 1)
    return (batch.label_positions * places).amax(1)
