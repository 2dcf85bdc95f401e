"""Adam over a bank: each adapter is updated as if trained alone.

One reduction a step carries, for the adapters active in it, the sums of their gradients and losses
over all ranks and their label counts. Each adapter's gradient is then divided by its own count,
clipped over its own sites, and stepped with its own rate, schedule and step count. What is not
active does not move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        counts: what else is to be summed, the same number on all ranks.
        compared: what must be the same on all ranks; see `all_reduce`.

    Returns:
        with gradients by site, (adapters, hidden): means over the adapter's labels, zero where not
        active.
    """
    rows = torch.tensor(active, device=loss_sums.device)
    steering = {site: rows[bank.steers[site][rows]] for site in bank.sites}
    own = {site: _grad(bank.vectors[site])[steering[site]] for site in bank.sites}
    reduced = all_reduce(own, active, loss_sums, label_counts, stop, counts, compared)
    gradients = {}
    for site, summed in reduced.gradients.items():
        index = steering[site]
        gradient = torch.zeros_like(bank.vectors[site])
        gradient[index] = summed / reduced.labels[index].clamp_min(1).unsqueeze(1)
        gradients[site] = gradient
    return replace(reduced, gradients=gradients)


class PackedAdam:
    """Adam (Kingma and Ba, arXiv 1412.6980) with a step count of its own for each adapter.

    Args:
        bank: the vectors that it moves.
        schedules: one per adapter.
        clip_norm: largest gradient norm of one adapter, over its sites; None: not clipped.
        scales: site to what its rates are multiplied by; 1 where a site is not named.
    """

    def __init__(
        self,
        bank: Bank,
        schedules: Sequence[Schedule],
        clip_norm: float | None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.bank = bank
        self.scales = {site: (scales or {}).get(site, 1.0) for site in bank.sites}
        self.schedules = list(schedules)
        self.clip_norm = clip_norm
        self.first = {s: torch.zeros_like(v, requires_grad=False) for s, v in bank.vectors.items()}
        self.second = {s: torch.zeros_like(v, requires_grad=False) for s, v in bank.vectors.items()}
        self.steps = torch.zeros(len(schedules), dtype=torch.int64)

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
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
        # One site in turn: what differs is found within so many steps, at the cost of a few kernels.
        vectors = list(self.bank.vectors.values())
        compared = vectors[int(self.steps.sum()) % len(vectors)] if vectors else None
        return reduce_step(self.bank, active, loss_sums, label_counts, stop, counts, compared)

    def tensors(self) -> dict[str, Tensor]:
        """All that a run goes on from, by name; in place."""
        kinds = {"first": self.first, "second": self.second}
        of_sites = {f"{kind}/{s}": v for kind, values in kinds.items() for s, v in values.items()}
        return {"steps": self.steps, **self.learned(), **of_sites}

    def learned(self) -> dict[str, Tensor]:
        """The vectors by name, (adapters, hidden) each; in place."""
        return {f"vectors/{site}": vectors for site, vectors in self.bank.vectors.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Move the vectors of the `active` rows.

        An adapter whose gradient is not finite, or that has no label in this step, is left as it is.

        Args:
            gradients: site -> (adapters, hidden), from `reduce_step`.

        Returns:
            (adapters,) gradient norms before clipping, and (adapters,) rates before a site's own
            scale; 0 where nothing moved.
        """
        # Norms are taken row by row, so an adapter's number does not depend on its neighbours.
        squares = torch.stack([g.double().square().sum(1) for g in gradients.values()]).sum(0)
        norms = squares.sqrt()
        rates = torch.zeros(len(self.schedules), dtype=torch.float64)
        moving = [row for row in active if math.isfinite(norms[row].item()) and norms[row] > 0]
        for row in moving:
            rates[row] = self.schedules[row](int(self.steps[row]))
            self.steps[row] += 1
        if not moving:
            return norms, rates
        rows = torch.tensor(moving, device=norms.device)
        scale = torch.ones_like(norms)
        if self.clip_norm is not None:
            scale = (self.clip_norm / norms.clamp_min(1e-30)).clamp_max(1.0)
        counts = self.steps[moving].double()
        rate = (rates[moving] / (1 - BETAS[0] ** counts)).to(norms.device, torch.float32)
        correction = (1 - BETAS[1] ** counts).sqrt().to(norms.device, torch.float32)
        for site, gradient in gradients.items():
            g = gradient[rows] * scale[rows].float().unsqueeze(1)
            first = self.first[site][rows].lerp(g, 1 - BETAS[0])
            second = self.second[site][rows].lerp(g * g, 1 - BETAS[1])
            self.first[site][rows] = first
            self.second[site][rows] = second
            change = first / (second.sqrt() / correction.unsqueeze(1) + EPS) * rate.unsqueeze(1)
            change *= self.scales[site]
            # Only where the adapter steers: elsewhere its vector stays the identity.
            self.bank.vectors[site][rows] -= change * self.bank.steers[site][rows].unsqueeze(1)
        return norms, rates


def _grad(vector: Tensor) -> Tensor:
    return torch.zeros_like(vector) if vector.grad is None else vector.grad
