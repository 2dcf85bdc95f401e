"""Rates that training estimates, against the authors' own Prodigy, and what they must not depend on.

Gradients are those of a bowl around a target, with noise, so that the distance to it can be estimated.
"""

from __future__ import annotations

import math

import pytest
import torch
from prodigyopt import Prodigy
from torch import Tensor

from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.training.estimated_rates import FACTOR, START
from salsa_dist.training.optimizer import PackedAdam, Schedule

STEPS = 40
SITES = {"encoder.0": 24, "encoder.1": 24, "llm.0": 16}
UNITS = {"encoder.0": 0.5, "encoder.1": 3.0, "llm.0": 20.0}
SPECS = [
    AdapterSpec("far", tuple(SITES), "salsa"),
    AdapterSpec("given", tuple(SITES), "salsa"),
    AdapterSpec("gain", ("encoder.1", "llm.0"), "gain"),
    AdapterSpec("near", ("encoder.0",), "add"),
]
DISTANCE = [0.2, 0.2, 0.1, 0.03]
SCHEDULES = [
    Schedule(lr=None, steps=40, warmup=0.1, decay="cosine"),
    Schedule(lr=0.02, steps=40, warmup=0.1, decay="cosine"),
    Schedule(lr=None, steps=30, warmup=0.0, decay="none"),
    Schedule(lr=None, steps=40, warmup=0.05, decay="cosine"),
]
ABSENT = [set(), set(), {4, 5, 13}, {0, 7}]


def parts(row: int) -> int:
    return 2 if SPECS[row].rule == "gain" else 1


def gradient(row: int, site: str, step: int, numbers: Tensor) -> Tensor:
    """(parts * hidden,) at `numbers`; its target is the adapter's distance away in every number."""
    drawn = torch.Generator().manual_seed(1000 * step + 10 * row + list(SITES).index(site))
    units = torch.ones_like(numbers)
    units[: SITES[site]] *= UNITS[site]
    signs = torch.Generator().manual_seed(row)
    target = DISTANCE[row] * torch.randint(0, 2, numbers.shape, generator=signs) * 2 - DISTANCE[row]
    noise = 0.3 * DISTANCE[row] * torch.randn(numbers.shape, generator=drawn)
    return (numbers / units - target + noise) / units


def trained(rows: list[int], clip_norm: float | None, start: float = 0.0) -> tuple[Bank, PackedAdam]:
    """The adapters of `rows`, trained side by side."""
    bank = Bank([SPECS[row] for row in rows], SITES)
    for place in range(len(rows)):
        bank.set_row(place, {site: torch.full_like(v, start) for site, v in bank.row(place).items()})
    optimizer = PackedAdam(bank, [SCHEDULES[row] for row in rows], clip_norm, UNITS)
    for step in range(STEPS):
        found = {site: torch.zeros_like(v) for site, v in bank.vectors.items()}
        active = [place for place, row in enumerate(rows) if step not in ABSENT[row]]
        for place in active:
            for site, numbers in bank.row(place).items():
                own = gradient(rows[place], site, step, numbers.detach())
                found[site][place, : len(own)] = own
        optimizer.step(found, active)
    return bank, optimizer


def by_its_authors(row: int, clip_norm: float | None) -> tuple[dict[str, Tensor], float]:
    """One adapter by Prodigy alone, in units of the activations: its numbers, and its estimate."""
    weights = {s: torch.zeros(parts(row) * SITES[s], requires_grad=True) for s in SPECS[row].sites}
    units = {s: torch.ones_like(w) for s, w in weights.items()}
    for site, unit in units.items():
        unit[: SITES[site]] *= UNITS[site]
    settings = {"d0": START, "d_coef": FACTOR, "use_bias_correction": True}
    prodigy = Prodigy(weights.values(), lr=1.0, **settings)
    made = 0
    for step in range(STEPS):
        if step in ABSENT[row]:
            continue
        found = {s: gradient(row, s, step, w.detach() * units[s]) for s, w in weights.items()}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in found.values()))
        clip = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        for site, weight in weights.items():
            weight.grad = found[site] * units[site] * clip
        prodigy.param_groups[0]["lr"] = SCHEDULES[row](made)
        prodigy.step()
        made += 1
    return {s: w.detach() * units[s] for s, w in weights.items()}, prodigy.param_groups[0]["d"]


@pytest.mark.parametrize("clip_norm", [0.5, None])
def test_forty_steps_equal_its_authors_prodigy(clip_norm: float | None) -> None:
    bank, optimizer = trained([0, 1, 2, 3], clip_norm)
    rates = {}
    for row, spec in enumerate(SPECS):
        if SCHEDULES[row].lr is not None:
            continue
        wanted, rate = by_its_authors(row, clip_norm)
        rates[spec.name] = optimizer.highest_rates()[row]
        assert rates[spec.name] == pytest.approx(rate, rel=1e-4)
        for site, numbers in bank.row(row).items():
            apart = (numbers.detach() - wanted[site]).norm() / wanted[site].norm()
            assert apart < 1e-4, (spec.name, site)
    assert rates["near"] > 1.5 * START  # all of them rise …
    assert rates["far"] > 4 * rates["near"]  # … and tell distances apart


def test_an_adapter_learns_the_same_alone_and_beside_others() -> None:
    together, all_rates = trained([0, 1, 2, 3], 0.5)
    for row in range(4):
        alone, rates = trained([row], 0.5)
        assert rates.highest_rates()[0] == all_rates.highest_rates()[row]
        for site, numbers in alone.row(0).items():
            assert torch.equal(numbers, together.row(row)[site]), (SPECS[row].name, site)


def test_given_rates_keep_nothing_more_in_a_checkpoint() -> None:
    kept = [{k for k in trained([row], None)[1].tensors() if k.startswith("rate_")} for row in (0, 1)]
    assert kept[1] == set()
    assert {"rate_found", "rate_numerator", "rate_start/llm.0", "rate_gradients/llm.0"} < kept[0]


def test_the_distance_is_from_where_training_started() -> None:
    """From further away the estimate is larger; a start that is not kept would show here."""
    far = [trained([0], None, start=start)[1].highest_rates()[0] for start in (0.0, 0.5)]
    assert far[1] > far[0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_estimate(broken: float) -> None:
    """Of its own adapter; that of another one in the same step is updated."""
    bank = Bank([SPECS[0], SPECS[3]], SITES)
    optimizer = PackedAdam(bank, [SCHEDULES[0], SCHEDULES[3]], 0.5, UNITS)
    for step in range(12):
        found = {site: torch.zeros_like(v) for site, v in bank.vectors.items()}
        for place, row in enumerate((0, 3)):
            for site, numbers in bank.row(place).items():
                found[site][place] = gradient(row, site, step, numbers.detach())
        before = {name: t.clone() for name, t in optimizer.tensors().items()}
        if step == 8:
            found["encoder.0"][0, 3] = broken
        optimizer.step(found, [0, 1])
        if step == 8:
            after = optimizer.tensors()
            changed = {name for name, t in after.items() if not torch.equal(t[0], before[name][0])}
            assert changed - {name for name in after if name.startswith("scales/")} == set()
            assert any(not torch.equal(t[1], before[name][1]) for name, t in after.items())
    assert all(START < optimizer.highest_rates()[row] < math.inf for row in (0, 1))
