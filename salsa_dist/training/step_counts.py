"""What ranks count of a step beside gradients, losses and labels: summed in the step's all-reduce.

StepShare ──of──► StepCounts ──numbers──► sum over all ranks ──from_numbers──► StepCounts of all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from salsa_dist.data.traffic import Traffic
from salsa_dist.training.batches import StepShare


@dataclass(frozen=True)
class StepCounts:
    """Of one rank's share, or of all ranks' shares together.

    Attributes:
        clips: as planned.
        bad: samples that could not be used, and clips that are missing.
        seconds: of audio.
        padded_seconds: the same with padding.
        waited_s: seconds for which ranks waited for clips.
        store: what was had of the store; None where shards lie in a folder.
    """

    clips: float
    bad: float
    seconds: float
    padded_seconds: float
    waited_s: float
    store: Traffic | None

    @classmethod
    def of(cls, share: StepShare, waited_s: float) -> StepCounts:
        """What is counted of one rank's share, for which it waited that long."""
        bad = float(len(share.bad) + share.hopeless)
        return cls(share.clips, bad, share.seconds, share.padded_seconds, waited_s, share.store)

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> StepCounts:
        """The reverse of `numbers`."""
        clips, bad, seconds, padded_seconds, waited_s, *store = numbers
        had = Traffic(*store) if store else None
        return cls(clips, bad, seconds, padded_seconds, waited_s, had)

    def numbers(self) -> list[float]:
        """As many on all ranks, to be summed."""
        store = astuple(self.store) if self.store is not None else ()
        return [self.clips, self.bad, self.seconds, self.padded_seconds, self.waited_s, *store]
