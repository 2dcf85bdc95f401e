"""Learning rates that training estimates for each adapter while it trains: Prodigy's distance estimate.

With γ an adapter's schedule (1 at its highest) with Adam's bias correction, g its clipped gradient, x
its numbers and x₀ what they were at first, the vectors in units of each layer's activations:

    numerator ← √β₂ · numerator + (d² / START) γ ⟨g, x₀ - x⟩
    gradients ← √β₂ · gradients + (d² / START) γ g
    d         ← max(d, FACTOR · numerator / ‖gradients‖₁)

An adapter's rate is d times its schedule. d begins at START and only rises. Adam's moments are of d·g,
so that steps at a smaller d count less. Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive
Parameter-Free Learner" (arXiv 2306.06101, algorithm 4).

    rate_found, rate_numerator                  (adapters,) fp64 on the host
    rate_gradients/SITE, rate_start/SITE        (adapters, parts * hidden) fp32
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from salsa_dist.steering.bank import Bank

# Chosen on dev clips of Whisper-base (two languages) and Moonshine-base: benchmarks/README.md.
START = 0.01
FACTOR = 3.0


class RateEstimates:
    """The estimates of a bank's adapters, and what they are computed from.

    Args:
        bank: its numbers as they are now are where training starts.
        estimated: for each adapter, whether its rate is estimated.
        decay: √β₂ of Adam.
    """

    def __init__(self, bank: Bank, estimated: Sequence[bool], decay: float) -> None:
        self.bank, self.decay = bank, decay
        self.estimated = list(estimated)
        self.found = torch.full((len(estimated),), START, dtype=torch.float64)
        self._numerators = torch.zeros(len(estimated), dtype=torch.float64)
        self._starts = [block.values.clone() for block in bank.blocks]
        self._gradients = [torch.zeros_like(block.values) for block in bank.blocks]
        self._next: list[Tensor] = []
        self._weights: list[float] = []

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by name; not copied."""
        found = {"rate_found": self.found, "rate_numerator": self._numerators}
        for kind, kept in (("gradients", self._gradients), ("start", self._starts)):
            for block, values in zip(self.bank.blocks, kept, strict=True):
                found |= {f"rate_{kind}/{s}": v for s, v in block.by_site(values).items()}
        return found

    def measure(
        self,
        gradients: Sequence[Tensor],
        units: Sequence[Tensor],
        clipped: Tensor,
        rates: Sequence[float],
    ) -> Tensor:
        """What `update` needs of this step, on the bank's device: nothing waits for it here.

        Args:
            gradients: for each block, as its `values`, not clipped.
            units: for each block, (sites * adapters,), the activation's size.
            clipped: (adapters,), what gradients are multiplied by.
            rates: of each adapter, d γ.

        Returns:
            (2 * sites, adapters) fp64: ⟨g, x₀ - x⟩ of each site before clipping, then ‖gradients‖₁.
        """
        self._weights = [
            d / START * rate if own else 0.0
            for d, rate, own in zip(self.found.tolist(), rates, self.estimated, strict=True)
        ]
        weights = torch.tensor(self._weights).to(self.bank.device, non_blocking=True) * clipped.float()
        self._next, products, sums = [], [], []
        for number, (block, g) in enumerate(zip(self.bank.blocks, gradients, strict=True)):
            sites = len(block.sites)
            # The unit of g is one over that of x, so it cancels here.
            moved = self._starts[number] - block.values
            products.append((g * moved).double().sum(1).view(sites, -1))
            weighted = g * weights.repeat(sites).unsqueeze(1)
            weighted[:, : block.hidden] *= units[number].unsqueeze(1)
            self._next.append(self._gradients[number] * self.decay + weighted)
            sums.append(self._next[-1].abs().double().sum(1).view(sites, -1))
        return torch.cat([*products, *sums])

    def update(self, measured: Tensor, clipped: Sequence[float], moving: Sequence[int]) -> None:
        """Take what `measure` found into the estimates of the `moving` rows.

        Args:
            measured: as from `measure`, on the host.
            clipped: of each adapter, what gradients are multiplied by.
        """
        for number, (at, _) in enumerate(self.bank.places(moving)):
            self._gradients[number][at] = self._next[number][at]
        self._next = []
        products, sums = (half.T.tolist() for half in measured.chunk(2))
        found, numerators = self.found.tolist(), self._numerators.tolist()
        for row in moving:
            # Exact sums: they do not depend on the other adapters' sites.
            product, total = clipped[row] * math.fsum(products[row]), math.fsum(sums[row])
            if self.estimated[row] and total > 0:
                numerators[row] = numerators[row] * self.decay + self._weights[row] * product
                found[row] = max(found[row], FACTOR * numerators[row] / total)
        self.found.copy_(torch.tensor(found, dtype=torch.float64))
        self._numerators.copy_(torch.tensor(numerators, dtype=torch.float64))
