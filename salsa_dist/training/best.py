"""The best state of each adapter on dev clips (`training.dev_every`).

    best/measure, best/loss    (adapters,) fp64: its error rate or loss, and its loss
    best/step, best/since      (adapters,) int64: steps that it had made, measurements since
    best/stopped               (adapters,) int64: step from which an adapter is absent; -1: it trains
    best/measured              () int64: the last step that was measured before; -1: none yet
    best/vectors/SITE …        as what is trained

These are tensors of the run's state, so a run that goes on chooses as one that never stopped. Measures
are reduced over all ranks before they come here: every rank chooses the same by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class HasLearned(Protocol):
    """Anything with trained tensors, such as `PackedAdam`."""

    def learned(self) -> dict[str, Tensor]: ...


class Best:
    """The best state so far of each adapter.

    Args:
        trainable: of which copies are kept.
        steps: of each adapter, in row order.
        every: steps of each adapter between two measurements; it is measured after its last one too.
        patience: measurements in a row without a better one, after which it stops; None: it does not.
    """

    def __init__(
        self,
        trainable: HasLearned,
        steps: Sequence[int],
        every: Sequence[int],
        patience: int | None,
    ) -> None:
        self._trained = trainable.learned()
        self._kept = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        self._steps = list(steps)
        self._every = list(every)
        self._patience = patience
        rows = len(self._steps)
        self._measure = torch.full((rows,), math.inf, dtype=torch.float64)
        self._loss = torch.full((rows,), math.inf, dtype=torch.float64)
        self._step = torch.zeros(rows, dtype=torch.int64)
        self._since = torch.zeros(rows, dtype=torch.int64)
        self._stopped = torch.full((rows,), -1, dtype=torch.int64)
        self._measured = torch.tensor(-1)

    def due(self, step: int) -> list[int]:
        """Rows to measure before `step`, counted in their own steps; no measurement comes twice."""
        if int(self._measured) >= step:
            return []
        return [
            row
            for row, (steps, every) in enumerate(zip(self._steps, self._every, strict=True))
            if step <= steps and (step % every == 0 or step == steps)
        ]

    @property
    def stopped(self) -> dict[int, int]:
        """Rows that stopped before their last step, and the step from which they are absent."""
        return {row: step for row, step in enumerate(self._stopped.tolist()) if step >= 0}

    @property
    def last(self) -> list[int]:
        """Steps that each adapter makes in all, as far as is known."""
        return [self.stopped.get(row, steps) for row, steps in enumerate(self._steps)]

    @property
    def steps(self) -> list[int]:
        """Steps that each adapter had made when it was best."""
        return [int(step) for step in self._step]

    @property
    def losses(self) -> dict[int, float]:
        """Dev loss of each row at its best, in nats per label."""
        return dict(enumerate(self._loss.tolist()))

    def measured(
        self, step: int, losses: Mapping[int, float], measures: Mapping[int, float]
    ) -> list[int]:
        """Keep those that are better than before; rows that stop now.

        Args:
            step: before which they were measured.
            losses, measures: by row: dev loss, and what is chosen by. One that is not finite is no
                better than any.
        """
        self._measured.fill_(step)
        stop = []
        for row, measure in measures.items():
            if measure < self._measure[row]:
                self._measure[row], self._loss[row] = measure, losses[row]
                self._step[row], self._since[row] = step, 0
                with torch.no_grad():
                    for name, tensor in self._trained.items():
                        self._of(self._kept[name], row).copy_(self._of(tensor, row))
                continue
            self._since[row] += 1
            patient = self._patience is None or self._since[row] < self._patience
            if not patient and step < self._steps[row]:
                self._stopped[row] = step
                stop.append(row)
        return stop

    def put_back(self) -> None:
        """Copy the best state into the trained tensors."""
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(self._kept[name])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name; not copied."""
        return {
            "best/measure": self._measure,
            "best/loss": self._loss,
            "best/step": self._step,
            "best/since": self._since,
            "best/stopped": self._stopped,
            "best/measured": self._measured,
            **{f"best/{name}": tensor for name, tensor in self._kept.items()},
        }

    def _of(self, tensor: Tensor, row: int) -> Tensor:
        """The part of one adapter. In a job of a single adapter, weights have no dimension for it."""
        return tensor if len(self._steps) == 1 else tensor[row]
