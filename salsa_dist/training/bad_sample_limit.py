"""Bad samples: counted by kind and named; too many of them stop the run.

    each rank's StepShare.bad ──StepCounts, in the step's all-reduce──► the same count on every rank
                              ──names, in steps that have any─────────► the same names on every rank

All ranks have the same counts, so they stop after the same step and no rank waits for another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch.distributed as dist

from salsa_dist.data.reading import ATTEMPTS, BAD_KINDS, Bad
from salsa_dist.errors import UserError
from salsa_dist.run.events import Events
from salsa_dist.training.batches import StepShare

NAMED = 10  # bad samples named on the console; then one at each doubling


class BadSamples:
    """The bad samples of this start of the run, the same on all ranks.

    Args:
        limit: largest number of different bad samples.
        say: prints a line, on the first rank.
    """

    def __init__(self, limit: int, events: Events, say: Callable[[str], None]) -> None:
        self.limit = limit
        self.events = events
        self.say = say
        self.seen: set[tuple[str, str]] = set()
        self.kinds: Counter[str] = Counter()

    def after_step(self, step: int, share: StepShare, count: float) -> None:
        """Record the bad samples of a step.

        Args:
            count: `StepCounts.bad` of all ranks together.

        Raises:
            UserError: more bad samples than the limit, or a clip without a replacement; on all ranks.
        """
        if not count:
            return
        everyones: list[tuple[Sequence[Bad], int]] = [([], 0)] * dist.get_world_size()
        dist.all_gather_object(everyones, (share.bad, share.hopeless))
        new = []
        for bad in (b for own, _ in everyones for b in own):
            if (bad.shard, bad.key) not in self.seen:
                self.seen.add((bad.shard, bad.key))
                self.kinds[bad.kind] += 1
                new.append(bad)
                self._name(bad)
        if new:
            self.events.write(
                "bad_samples",
                step=step,
                samples=[{"kind": b.kind, "shard": b.shard, "key": b.key, "why": b.why} for b in new],
                so_far={kind: self.kinds[kind] for kind in BAD_KINDS if self.kinds[kind]},
            )
        if hopeless := sum(missing for _, missing in everyones):
            raise UserError(
                f"step {step + 1}: {hopeless} clips can't be used, nor any of {ATTEMPTS} others in the "
                f"place of each ({self._summary()}): fix the shards, or fetch them again"
            )
        if len(self.seen) > self.limit:
            raise UserError(
                f"step {step + 1}: {len(self.seen)} samples can't be used ({self._summary()}), more "
                f"than data.max_bad, {self.limit}; the last: {new[-1].why}. Fix the shards, or "
                "allow more"
            )

    def _name(self, bad: Bad) -> None:
        n = len(self.seen)
        if n <= NAMED or n & (n - 1) == 0:
            self.say(f"bad sample {n}, another clip replaces it: {bad.why}")
        if n == NAMED:
            self.say("more bad samples are named in events.jsonl, and here at each doubling")

    def _summary(self) -> str:
        return ", ".join(f"{self.kinds[kind]} {kind}" for kind in BAD_KINDS if self.kinds[kind])
