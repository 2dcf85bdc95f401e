"""Skips a step of an adapter if its loss is too high or its gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from salsa_dist.errors import StartAgain, UserError
from salsa_dist.training.job import Job
from salsa_dist.training.reduce import Reduced


class Guard:
    """Skips such steps, and ends the run after too many in a row."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.in_a_row = 0

    def alike(self, step: int, reduced: Reduced) -> None:
        """Check that all ranks hold equal adapters.

        Raises:
            StartAgain: they differ; on all ranks.
        """
        if not reduced.alike:
            raise StartAgain(
                f"step {step + 1}: the ranks hold different values of the same adapter: a device or a "
                "link computed wrongly, or ranks use different kernels. The next start resumes from "
                "the newest checkpoint. If it happens again, exclude one node at a time to find it"
            )

    def sound(self, active: Sequence[int], reduced: Reduced) -> list[int]:
        """The active rows whose loss is not above `training.max_loss`."""
        limit = self.job.config.training.max_loss or math.inf
        losses = reduced.losses.tolist()
        return [row for row in active if not losses[row] > limit]  # NaN: no labels

    def after_step(
        self, step: int, active: Sequence[int], moving: Sequence[int], norms: Tensor
    ) -> None:
        """Record the rows that were skipped in this step.

        Raises:
            UserError: more than `training.max_skipped` steps in a row were skipped.
        """
        job, found, moved = self.job, norms.tolist(), set(moving)
        broken = [job.names[row] for row in active if row not in moved or not math.isfinite(found[row])]
        self.in_a_row = self.in_a_row + 1 if broken else 0
        if not broken:
            return
        assert job.batches is not None
        keys = job.batches.keys(step)
        job.session.events.write("skipped", step=step, adapters=broken, keys=keys)
        if self.in_a_row > job.config.training.max_skipped:
            raise UserError(
                f"adapter {broken[0]}: no finite gradient, or a loss above training.max_loss, in "
                f"{self.in_a_row} steps in a row, up to step {step + 1} (clips {', '.join(keys[:4])} "
                "…): lower its learning rate, or look at these clips"
            )
