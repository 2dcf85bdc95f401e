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
from salsa_dist.training.estimated_rates import RateEstimates
from salsa_dist.training.reduce import Reduced, all_reduce

BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class Schedule:
    """Learning rate of one adapter over its own steps: linear warm-up, then cosine to zero, or flat.

    Attributes:
        lr: the highest rate; None: it is estimated while training.
    """

    lr: float | None
    steps: int
    warmup: float
    decay: str

    def __call__(self, step: int, found: float = 1.0) -> float:
        """Rate of step `step`, the first being 0. `found` is the highest rate where it is estimated."""
        highest = found if self.lr is None else self.lr
        rising = self.warmup * self.steps
        if step < rising:
            return highest * (step + 1) / (rising + 1)
        if self.decay == "none":
            return highest
        done = (step - rising) / max(1.0, self.steps - rising)
        return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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

    With `training.lr: auto` the optimizer is Prodigy (`estimated_rates.py`).

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
        estimated = [schedule.lr is None for schedule in self.schedules]
        self._estimates = RateEstimates(bank, estimated, BETAS[1] ** 0.5) if any(estimated) else None

    def highest_rates(self) -> list[float]:
        """Highest learning rate of each adapter, given or estimated so far."""
        found = self._estimates.found.tolist() if self._estimates is not None else []
        return [found[row] if s.lr is None else s.lr for row, s in enumerate(self.schedules)]

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
        own |= self._estimates.tensors() if self._estimates is not None else {}
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
        norms = torch.cat(squares).sum(0).sqrt()
        made = self.steps.tolist()
        highest = self.highest_rates()
        now = zip(self.schedules, made, highest, strict=True)
        by_row = [schedule(step, rate) for schedule, step, rate in now]
        measured = norms[:0]
        if self._estimates is None:
            norms = norms.cpu()
        else:
            corrected = [rate / _bias(step + 1) for rate, step in zip(by_row, made, strict=True)]
            clipped = self._clipped(norms)
            measured = self._estimates.measure(whole, self._scales, clipped, corrected)
            told = torch.cat([norms.unsqueeze(0), measured]).cpu()  # one wait for a GPU
            norms, measured = told[0], told[1:]
        found = norms.tolist()
        moving = [row for row in active if math.isfinite(found[row]) and found[row] > 0]
        steps = set(moving)
        rates = [rate if row in steps else 0.0 for row, rate in enumerate(by_row)]
        if not moving:
            return norms, torch.tensor(rates, dtype=torch.float64)
        clips = self._clipped(norms).tolist()
        if self._estimates is not None:
            self._estimates.update(measured, clips, moving)
        self.steps[moving] += 1
        # Prodigy's moments are of d·g; those at a given rate are of g.
        weights = [d if s.lr is None else 1.0 for s, d in zip(self.schedules, highest, strict=True)]
        # Per adapter: clipping factor and weight, learning rate, bias correction of the second moment,
        # epsilon.
        factors = torch.tensor(
            [
                [clip * weight for clip, weight in zip(clips, weights, strict=True)],
                [rate / (1 - BETAS[0] ** (n + 1)) for rate, n in zip(rates, made, strict=True)],
                [(1 - BETAS[1] ** (n + 1)) ** 0.5 for n in made],
                [EPS * weight for weight in weights],
            ]
        )
        factors = factors.to(self.bank.device, non_blocking=True)
        # Only at the sites of each adapter: at other sites its vector stays zero.
        for number, (at, rows) in enumerate(self.bank.places(moving)):
            values, (first, second) = blocks[number].values, self._moments[number]
            scale, rate, correction, epsilon = factors[:, rows].unsqueeze(2)
            g = whole[number][at] * scale
            mean = first[at].lerp(g, 1 - BETAS[0])
            variance = second[at].lerp(g * g, 1 - BETAS[1])
            first[at] = mean
            second[at] = variance
            change = mean / (variance.sqrt() / correction + epsilon) * rate
            # A rule's further numbers per channel have no unit, so the activation's size is not theirs.
            change[:, : blocks[number].hidden] *= self._scales[number][at].unsqueeze(1)
            values[at] -= change
        return norms, torch.tensor(rates, dtype=torch.float64)

    def _clipped(self, norms: Tensor) -> Tensor:
        """(adapters,) what gradients of these norms are multiplied by."""
        if self.clip_norm is None:
            return torch.ones_like(norms)
        return (self.clip_norm / norms.clamp_min(1e-30)).clamp_max(1.0)


def _bias(steps: int) -> float:
    """What Adam's moments after `steps` steps lack, for both together; the rate is divided by it."""
    return float((1 - BETAS[0] ** steps) / (1 - BETAS[1] ** steps) ** 0.5)


def _grad(vector: Tensor) -> Tensor:
    return torch.zeros_like(vector) if vector.grad is None else vector.grad
