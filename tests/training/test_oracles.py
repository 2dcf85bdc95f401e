"""The optimizer against `torch.optim.Adam`, the schedule against a table and against transformers'.

Each adapter of the bank is trained beside by torch alone: its own `Adam`, `clip_grad_norm_` over its
own sites, and none of its steps where it is absent.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.training.optimizer import PackedAdam, Schedule

STEPS = 20
SITES = {"encoder.0": 24, "encoder.1": 24, "llm.0": 16}
SPECS = [
    AdapterSpec("all", tuple(SITES), "salsa"),
    AdapterSpec("top", ("encoder.1",), "add"),
    AdapterSpec("two", ("encoder.0", "llm.0"), "salsa"),
]
SCHEDULES = [
    Schedule(lr=0.02, steps=20, warmup=0.2, decay="cosine"),
    Schedule(lr=0.5, steps=12, warmup=0.0, decay="none"),
    Schedule(lr=0.001, steps=15, warmup=0.5, decay="cosine"),
]
# Gradients large enough to be clipped, so small that epsilon counts, and between the two.
SIZES = [1.0, 1e-7, 1e-3]
ABSENT = [set(), {0, 3, 4, 5, 11, 15, 16, 17}, {7, 8, 9, 18, 19}]
SCALES = {"llm.0": 0.3, "encoder.1": 4.0}


def gradients(step: int) -> dict[str, Tensor]:
    """(adapters, hidden) a site, as `reduce_step` gives them: zero where an adapter is absent."""
    drawn = torch.Generator().manual_seed(step)
    sizes = torch.tensor(SIZES).unsqueeze(1)
    found = {site: sizes * torch.randn(3, width, generator=drawn) for site, width in SITES.items()}
    for row, spec in enumerate(SPECS):
        for site in SITES:
            if step in ABSENT[row] or site not in spec.sites:
                found[site][row] = 0.0
    return found


def by_torch(row: int, clip_norm: float | None) -> tuple[dict[str, Tensor], list[float]]:
    """One adapter trained by torch alone: its vectors, and its gradient's norm in each of its steps."""
    weights = {site: torch.zeros(SITES[site], requires_grad=True) for site in SPECS[row].sites}
    adam = torch.optim.Adam([{"params": [w], "site": site} for site, w in weights.items()])
    norms = []
    for step in range(STEPS):
        if step in ABSENT[row]:
            continue
        for site, weight in weights.items():
            weight.grad = gradients(step)[site][row].clone()
        limit = math.inf if clip_norm is None else clip_norm
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(weights.values()), limit)))
        for group in adam.param_groups:
            group["lr"] = SCHEDULES[row](len(norms) - 1) * SCALES.get(group["site"], 1.0)
        adam.step()
    return {site: weight.detach() for site, weight in weights.items()}, norms


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("clip_norm", [0.5, None])
def test_twenty_steps_equal_torch_adam_with_clip_grad_norm(clip_norm: float | None) -> None:
    bank = Bank(SPECS, SITES)
    optimizer = PackedAdam(bank, SCHEDULES, clip_norm, SCALES)
    norms: list[list[float]] = [[] for _ in SPECS]
    for step in range(STEPS):
        active = [row for row in range(3) if step not in ABSENT[row]]
        before, rates = optimizer.step(gradients(step), active)
        for row in active:
            assert rates[row] == SCHEDULES[row](len(norms[row]))
            norms[row].append(float(before[row]))
    for row, spec in enumerate(SPECS):
        wanted, wanted_norms = by_torch(row, clip_norm)
        assert norms[row] == pytest.approx(wanted_norms, rel=1e-6)
        assert any(norm > 0.5 for norm in wanted_norms) == (row == 0)  # one of them is clipped
        for site in SITES:
            vector = bank.vectors[site][row].detach()
            if site in spec.sites:
                assert wanted[site].norm() > 1e-3
                assert apart(vector, wanted[site]) < 2e-6, (spec.name, site)
            else:
                assert not vector.any()


def test_a_gradient_that_is_not_finite_is_a_step_that_was_not_made() -> None:
    def trained(broken: bool) -> Tensor:
        bank = Bank(SPECS, SITES)
        optimizer = PackedAdam(bank, SCHEDULES, 0.5, SCALES)
        for step in range(4):
            found = gradients(step)
            if step == 2 and broken:
                found["llm.0"][0, 3] = math.nan
            optimizer.step(found, [0] if broken or step != 2 else [])
        return bank.vectors["encoder.0"][0].detach()

    assert torch.equal(trained(broken=True), trained(broken=False))


# Shares of the highest rate. Ten steps: with 2 and 2.5 of them rising, then half a cosine to zero that
# begins where the rise ends, or flat.
TABLE = [
    (0.2, "cosine", [1 / 3, 2 / 3, 1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]),
    (0.25, "cosine", [2 / 7, 4 / 7, 6 / 7, 0.98907, 0.90451, 0.75, 0.55226, 0.34549, 0.16543, 0.04323]),
    (0.0, "cosine", [1.0, 0.97553, 0.90451, 0.79389, 0.65451, 0.5, 0.34549, 0.20611, 0.09549, 0.02447]),
    (0.2, "none", [1 / 3, 2 / 3, *[1.0] * 8]),
    (0.0, "none", [1.0] * 10),
]


@pytest.mark.parametrize(("warmup", "decay", "shares"), TABLE)
def test_the_schedule_is_the_table(warmup: float, decay: str, shares: list[float]) -> None:
    schedule = Schedule(lr=0.02, steps=10, warmup=warmup, decay=decay)
    assert [schedule(t) / 0.02 for t in range(10)] == pytest.approx(shares, abs=1e-5)
    if decay == "cosine":
        assert schedule(10) == pytest.approx(0.0, abs=1e-18)


def of_transformers(warmup_steps: int, steps: int, decay: str) -> list[float]:
    """Rates of `steps` + 1 steps, of a highest rate of 1."""
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if decay == "cosine":
        scheduler = get_cosine_schedule_with_warmup(sgd, warmup_steps, steps)
    else:
        scheduler = get_constant_schedule_with_warmup(sgd, warmup_steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        sgd.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("decay", ["cosine", "none"])
@pytest.mark.parametrize("rising", [0, 1, 8, 39])
def test_the_schedule_is_that_of_transformers_but_for_a_first_step_that_counts(
    rising: int, decay: str
) -> None:
    """transformers' warm-up starts at a rate of 0, which wastes a step. Ours rises on the line from 0
    at the step before the first to 1 at the first after the warm-up; from there on both are equal.
    """
    steps = 40
    schedule = Schedule(lr=1.0, steps=steps, warmup=rising / steps, decay=decay)
    ours = [schedule(t) for t in range(steps + 1)]
    assert ours[rising:] == pytest.approx(of_transformers(rising, steps, decay)[rising:], abs=1e-12)
    longer = of_transformers(rising + 1, steps + 1, decay)
    assert ours[:rising] == pytest.approx(longer[1 : rising + 1], abs=1e-12)
