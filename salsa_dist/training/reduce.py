"""The all-reduce of one step: one buffer, summed over all ranks.

gradients of the active adapters │ their losses │ their label counts │ stop │ other counts
                                                │ h │ h², a digest of values that all ranks must share

On n ranks, n Σh² = (Σh)² holds only if all h are equal (Cauchy-Schwarz). Each h is below 64, so both
sums are exact in fp32 for up to 4,227 ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_MIX = 0x1E3779B97F4A7C15  # odd; the top bits of a product depend on all bits below


@dataclass(frozen=True)
class Reduced:
    """One step's sums over all ranks.

    Attributes:
        gradients: by site or weight; sums over labels from `all_reduce`, means over labels from
            `Trainable.reduce`.
        labels: (adapters,) sums of the weights of labels, on the CPU: label counts where no clip has a
            weight of its own.
        losses: (adapters,) mean loss a label, on the CPU; NaN where not active.
        stop: whether any rank asked to stop after this step.
        counts: sums of the further numbers (`StepCounts.from_numbers`).
        bytes: size of the reduced buffer.
        alike: whether all ranks hold equal values of the compared tensor.
    """

    gradients: Mapping[str, Tensor]
    labels: Tensor
    losses: Tensor
    stop: bool
    counts: list[float]
    bytes: int
    alike: bool = True

    @property
    def divisors(self) -> Tensor:
        """(adapters,) what turns sums over labels into means; 1 where there is no label."""
        return torch.where(self.labels > 0, self.labels, 1.0)


def all_reduce(
    gradients: Mapping[str, Tensor],
    active: Sequence[int],
    loss_sums: Tensor,
    label_counts: Tensor,
    stop: bool,
    counts: Sequence[float] = (),
    compared: Tensor | None = None,
) -> Reduced:
    """Sum over all ranks, in one all-reduce. All ranks call this; it waits for the device once.

    Args:
        gradients: this rank's gradients of the `active` adapters, summed over labels.
        active: rows that take part in this step, the same on all ranks.
        loss_sums, label_counts: (adapters,) fp32, of this rank; labels count by their weights.
        stop: this rank asks to stop.
        counts: further numbers to sum (`StepCounts.numbers`), as many on all ranks.
        compared: fp32 tensor that must be equal on all ranks: the vectors of one site, another one in
            each step. A difference in any bit is found with a probability of 63 in 64.
    """
    device, rows = loss_sums.device, torch.tensor(active, dtype=torch.int64)
    here = rows.to(device, non_blocking=True)
    parts = [gradient.flatten() for gradient in gradients.values()]
    others = torch.tensor([float(stop), *counts]).to(loss_sums, non_blocking=True)
    h = loss_sums.new_zeros(1) if compared is None else digest_of(compared).to(loss_sums.dtype)
    told = [loss_sums[here], label_counts[here], others, h, h * h]
    buffer = torch.cat([*parts, *told])
    dist.all_reduce(buffer)

    *summed, tail = buffer.split([*map(len, parts), sum(map(len, told))])
    losses, labels, others = tail.cpu().split([len(rows), len(rows), len(others) + 2])
    stopping, *summed_counts, sum_of_h, sum_of_squares = others.tolist()
    return Reduced(
        {
            name: part.view_as(gradient)
            for (name, gradient), part in zip(gradients.items(), summed, strict=True)
        },
        torch.zeros(len(label_counts)).index_copy(0, rows, labels),
        torch.full((len(loss_sums),), math.nan).index_copy(0, rows, losses / labels),
        stopping > 0,
        summed_counts,
        buffer.numel() * buffer.element_size(),
        dist.get_world_size() * sum_of_squares == sum_of_h**2,
    )


def digest_of(values: Tensor) -> Tensor:
    """A digest of every bit of the fp32 `values`: (1,) int64, 0 to 63. Does not wait for the device."""
    bits = values.detach().flatten().view(torch.int32).long()
    places = torch.arange(1, 2 * len(bits), 2, device=bits.device)  # odd: each bit counts
    mixed = (bits * places).sum().reshape(1) * _MIX
    return (mixed >> 58) & 63
