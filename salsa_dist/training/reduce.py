"""The all-reduce of one step: one buffer, summed over all ranks.

gradients of the adapters that take part │ their losses │ their label counts │ stop │ other counts
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Reduced:
    """One step's sums over all ranks.

    Attributes:
        gradients: by site or weight; sums over labels, or what an optimizer made of them.
        labels: (adapters,) label counts.
        losses: (adapters,) mean cross-entropy a label; NaN where not active.
        stop: whether any rank asked to stop after this step.
        counts: what ranks counted besides, summed.
        bytes: size of the buffer that travelled.
    """

    gradients: Mapping[str, Tensor]
    labels: Tensor
    losses: Tensor
    stop: bool
    counts: list[float]
    bytes: int


def all_reduce(
    gradients: Mapping[str, Tensor],
    active: Sequence[int],
    loss_sums: Tensor,
    label_counts: Tensor,
    stop: bool,
    counts: Sequence[float] = (),
) -> Reduced:
    """Sum over all ranks, in one all-reduce. A collective.

    Args:
        gradients: this rank's sums over labels, of what the `active` adapters train.
        active: rows that take part in this step, the same on all ranks.
        loss_sums, label_counts: (adapters,) fp32, of this rank.
        stop: this rank asks to stop.
        counts: what else is to be summed, the same number on all ranks.
    """
    rows = torch.tensor(active, device=loss_sums.device)
    parts = [gradient.flatten() for gradient in gradients.values()]
    others = loss_sums.new_tensor([float(stop), *counts])
    buffer = torch.cat([*parts, loss_sums[rows], label_counts[rows], others])
    dist.all_reduce(buffer)

    sizes = [*map(len, parts), len(rows), len(rows), len(others)]
    *summed, losses, labels, others = buffer.split(sizes)
    stopping, *summed_counts = others.tolist()
    return Reduced(
        {
            name: part.view_as(gradient)
            for (name, gradient), part in zip(gradients.items(), summed, strict=True)
        },
        torch.zeros_like(label_counts).index_copy(0, rows, labels),
        torch.full_like(loss_sums, math.nan).index_copy(0, rows, losses / labels),
        stopping > 0,
        summed_counts,
        buffer.numel() * buffer.element_size(),
    )
