"""Averages of each adapter over its steps (`training.average`). The average is measured, chosen and
saved; training continues without it.

    average/NAME    as what is trained, one row for each adapter

    exponential     decay d, after step n (the first is 1)     weight of the newest (1 - d) / (1 - d^n)
    last k          of the steps before a measurement or an end, none of them before the measurement
                    that came before                           weight of the newest 1/1, 1/2, …, 1/k

Weights follow from an adapter's own steps alone, so an adapter in a bank has those of a run of its own,
and a state needs nothing but the averages. A step that was skipped counts as one that moved nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from salsa_dist.training.best import HasLearned


class Average:
    """Averages over the steps of each adapter.

    Args:
        trainable: what is averaged.
        over: a decay below 1, or a number of last steps.
        ends: of each adapter, in row order, how many steps it has made where it is measured or ends.
    """

    def __init__(self, trainable: HasLearned, over: int | float, ends: Sequence[Iterable[int]]) -> None:
        self._trained = trainable.learned()
        self._averages = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        self._over = over
        self._ends = [sorted({0, *own}) for own in ends]

    @torch.no_grad()
    def after_step(self, step: int, active: Collection[int]) -> None:
        """Add the `active` rows after `step` to their averages."""
        own = [self._weight(row, step + 1) if row in active else 0.0 for row in range(len(self._ends))]
        if not any(own):
            return
        weights = torch.tensor(own)
        for name, average in self._averages.items():
            # Where there is one alone, weights have no dimension for it.
            rows = weights.view(-1, *[1] * (average.dim() - 1)) if len(own) > 1 else weights[0]
            rows = rows.to(average.device, average.dtype, non_blocking=True)
            average.lerp_(self._trained[name].detach(), rows)

    def _weight(self, row: int, made: int) -> float:
        if self._over < 1:
            return (1 - self._over) / (1 - self._over**made)
        ends = self._ends[row]
        after = bisect_left(ends, made)
        first = max(ends[after - 1], ends[after] - int(self._over))
        return 1 / (made - first) if made > first else 0.0

    @torch.no_grad()
    def put_in(self) -> None:
        """Copy the averages into the trained tensors."""
        for name, tensor in self._trained.items():
            tensor.copy_(self._averages[name])

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Inside the block, the trained tensors have their averages."""
        kept = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        self.put_in()
        yield
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(kept[name])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name; not copied."""
        return {f"average/{name}": tensor for name, tensor in self._averages.items()}
