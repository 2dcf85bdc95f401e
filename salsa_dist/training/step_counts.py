"""Further counts of a step, summed over all ranks in the step's all-reduce.

StepShare ──of──► StepCounts ──numbers──► sum over all ranks ──from_numbers──► StepCounts of all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from salsa_dist.data.traffic import Traffic
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
        store: traffic with the store; None if the shards are in a folder.
    """

    clips: float
    bad: float
    seconds: float
    padded_seconds: float
    waited_s: float
    store: Traffic | None

    @classmethod
    def of(cls, share: StepShare, waited_s: float) -> StepCounts:
        """The counts of one rank's share."""
        bad = float(len(share.bad) + share.hopeless)
        return cls(share.clips, bad, share.seconds, share.padded_seconds, waited_s, share.store)

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> StepCounts:
        """The reverse of `numbers`."""
        clips, bad, seconds, padded_seconds, waited_s, *store = numbers
        had = Traffic(*store) if store else None
        return cls(clips, bad, seconds, padded_seconds, waited_s, had)

    def numbers(self) -> list[float]:
        """The counts as a list, of the same length on all ranks."""
        store = astuple(self.store) if self.store is not None else ()
        return [self.clips, self.bad, self.seconds, self.padded_seconds, self.waited_s, *store]
