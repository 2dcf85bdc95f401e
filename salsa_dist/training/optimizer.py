"""Adam over a bank: each adapter is updated as if trained alone.

One all-reduce per step sums the gradients, losses and label counts of the active adapters. Each
adapter's gradient is then divided by its own label count, clipped over its own sites, and stepped with
its own rate, schedule and step count. Adapters that are not active do not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from salsa_dist.steering.bank import Bank
from salsa_dist.training.reduce import Reduced, all_reduce

BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class Schedule:
    """Learning rate of one adapter over its own steps: linear warm-up, then cosine to zero, or flat."""

    lr: float
    steps: int
    warmup: float
    decay: str

    def __call__(self, step: int) -> float:
        """Rate of step `step`, the first being 0."""
        rising = self.warmup * self.steps
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        if self.decay == "none":
            return self.lr
        done = (step - rising) / max(1.0, self.steps - rising)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def reduce_step(
    bank: Bank,
    active: Sequence[int],
    loss_sums: Tensor,
    label_counts: Tensor,
    stop: bool,
    counts: Sequence[float] = (),
    compared: Tensor | None = None,
) -> Reduced:
    """Sum gradients, losses and counts of the `active` adapters over all ranks, in one all-reduce.

    Args:
        bank: its vectors' `.grad` hold this rank's sums over labels.
        active: rows that take part in this step, the same on all ranks.
        loss_sums, label_counts: (adapters,) fp32, of this rank.
        stop: this rank asks to stop.
        counts: further numbers to sum (`StepCounts.numbers`), as many on all ranks.
        compared: tensor that must be equal on all ranks; see `all_reduce`.

    Returns:
        The sums. Its gradients are means over each adapter's labels by their weights, by site,
        (adapters, hidden); zero for adapters that are not active.
    """
    places = bank.places(active)
    own = {}
    for number, (block, (at, _)) in enumerate(zip(bank.blocks, places, strict=True)):
        own[str(number)] = torch.cat([_grad(bank.vectors[site]) for site in block.sites])[at]
    reduced = all_reduce(own, active, loss_sums, label_counts, stop, counts, compared)
    labels = reduced.divisors.to(bank.device, non_blocking=True)
    gradients: dict[str, Tensor] = {}
    summed = reduced.gradients.values()
    for block, (at, rows), of_rows in zip(bank.blocks, places, summed, strict=True):
        means = torch.zeros_like(block.values)
        means[at] = of_rows / labels[rows].unsqueeze(1)
        gradients |= block.by_site(means)
    return replace(reduced, gradients=gradients)


class PackedAdam:
    """Adam (Kingma and Ba, arXiv 1412.6980); each adapter has its own step count.

    Args:
        bank: the vectors to train.
        schedules: one per adapter.
        clip_norm: largest gradient norm of one adapter, over its sites; None: not clipped.
        scales: learning-rate multiplier per site; 1 for sites that are missing. None: each adapter has
            its own multipliers; `scale_by` sets them and checkpoints keep them.
    """

    def __init__(
        self,
        bank: Bank,
        schedules: Sequence[Schedule],
        clip_norm: float | None,
        scales: Mapping[str, float] | None = MappingProxyType({}),
    ) -> None:
        self.bank = bank
        self.own_scales = scales is None
        self.schedules = list(schedules)
        self.clip_norm = clip_norm
        self._moments = [[torch.zeros_like(b.values) for _ in range(2)] for b in bank.blocks]
        self._scales = [
            torch.tensor(
                [(scales or {}).get(site, 1.0) for site in block.sites for _ in bank.specs]
            ).to(bank.device)
            for block in bank.blocks
        ]
        self.scales = {
            site: own
            for block, of_rows in zip(bank.blocks, self._scales, strict=True)
            for site, own in block.by_site(of_rows).items()
        }
        self.steps = torch.zeros(len(schedules), dtype=torch.int64)

    def scale_by(self, row: int, scales: Mapping[str, float]) -> None:
        """Multiply the rates of adapter `row` by a factor per site."""
        for site, scale in scales.items():
            self.scales[site][row] = scale

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for vector in self.bank.vectors.values():
            vector.grad = None

    def reduce(
        self,
        active: Sequence[int],
        loss_sums: Tensor,
        label_counts: Tensor,
        stop: bool,
        counts: Sequence[float] = (),
    ) -> Reduced:
        """Sum over all ranks; see `reduce_step`."""
        # One site per step, in turn: a difference is found within as many steps as there are sites.
        vectors = list(self.bank.vectors.values())
        compared = vectors[sum(self.steps.tolist()) % len(vectors)] if vectors else None
        return reduce_step(self.bank, active, loss_sums, label_counts, stop, counts, compared)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name; not copied."""
        of_sites = {
            f"{kind}/{site}": moment
            for number, kind in enumerate(("first", "second"))
            for block, moments in zip(self.bank.blocks, self._moments, strict=True)
            for site, moment in block.by_site(moments[number]).items()
        }
        own = {f"scales/{site}": v for site, v in self.scales.items()} if self.own_scales else {}
        return {"steps": self.steps, **self.learned(), **of_sites, **own}

    def learned(self) -> dict[str, Tensor]:
        """The vectors by name, (adapters, hidden) each; not copied."""
        return {f"vectors/{site}": vectors for site, vectors in self.bank.vectors.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Update the vectors of the `active` rows.

        An adapter without a finite gradient, or without a label in this step, does not change.

        Args:
            gradients: site -> (adapters, hidden), from `reduce_step`.

        Returns:
            (adapters,) gradient norms before clipping, and (adapters,) learning rates before the
            multiplier of a site; 0 for adapters that did not change.
        """
        blocks = self.bank.blocks
        whole = [torch.cat([gradients[site] for site in block.sites]) for block in blocks]
        # Norms are computed row by row, so an adapter's norm does not depend on the other adapters.
        squares = [
            gradient.double().square_().sum(1).view(len(block.sites), -1)
            for block, gradient in zip(blocks, whole, strict=True)
        ]
        norms = torch.cat(squares).sum(0).sqrt().cpu()
        found, made = norms.tolist(), self.steps.tolist()
        moving = [row for row in active if math.isfinite(found[row]) and found[row] > 0]
        by_row = [0.0] * len(self.schedules)
        for row in moving:
            by_row[row] = self.schedules[row](made[row])
        rates = torch.tensor(by_row, dtype=torch.float64)
        if not moving:
            return norms, rates
        self.steps[moving] += 1
        counts = self.steps[moving].double()
        # Per adapter: clipping factor, learning rate, bias correction of the second moment.
        factors = torch.ones(3, len(self.schedules))
        if self.clip_norm is not None:
            factors[0] = (self.clip_norm / norms.clamp_min(1e-30)).clamp_max(1.0)
        factors[1, moving] = (rates[moving] / (1 - BETAS[0] ** counts)).float()
        factors[2, moving] = (1 - BETAS[1] ** counts).sqrt().float()
        factors = factors.to(self.bank.device, non_blocking=True)
        # Only at the sites of each adapter: at other sites its vector stays zero.
        for number, (at, rows) in enumerate(self.bank.places(moving)):
            values, (first, second) = blocks[number].values, self._moments[number]
            scale, rate, correction = factors[:, rows].unsqueeze(2)
            g = whole[number][at] * scale
            mean = first[at].lerp(g, 1 - BETAS[0])
            variance = second[at].lerp(g * g, 1 - BETAS[1])
            first[at] = mean
            second[at] = variance
            change = mean / (variance.sqrt() / correction + EPS) * rate
            # A rule's further numbers per channel have no unit, so the activation's size is not theirs.
            change[:, : blocks[number].hidden] *= self._scales[number][at].unsqueeze(1)
            values[at] -= change
        return norms, rates


def _grad(vector: Tensor) -> Tensor:
    return torch.zeros_like(vector) if vector.grad is None else vector.grad
