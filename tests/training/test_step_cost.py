"""How many operations stepping the adapters takes: as many for any number of adapters and sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from operations import Counted

from salsa_dist.placement.ranks import join
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.training.optimizer import PackedAdam, Schedule


def step_of(adapters: int, sites: int, lr: float | None) -> Counter[str]:
    """The operations of the second step of a bank, after which nothing new is made."""
    widths = {f"encoder.{i}": 8 for i in range(sites // 2)} | {
        f"llm.{i}": 16 for i in range(sites // 2)
    }
    bank = Bank([AdapterSpec(f"a{i}", tuple(widths), "salsa") for i in range(adapters)], widths)
    adam = PackedAdam(bank, [Schedule(lr, 10, 0.0, "none")] * adapters, 1.0)
    rows = list(range(adapters))
    for _ in range(2):
        for vectors in bank.vectors.values():
            vectors.grad = torch.ones_like(vectors)
        with Counted() as counted:
            sums = torch.ones(adapters), torch.ones(adapters)
            reduced = adam.reduce(rows, *sums, False, [1.0, 2.0])
            adam.step(reduced.gradients, rows)
    return counted.ops


@pytest.mark.parametrize(("lr", "most"), [(0.01, 150), (None, 220)])
def test_a_step_is_few_operations(lr: float | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.Tensor] = []
    plain = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: waits.append(tensor) or plain(tensor))
    with join():
        small, many = step_of(2, 12, lr), step_of(40, 64, lr)
    assert sum(many.values()) == sum(small.values()) <= most
    # A GPU is waited for twice in each of four steps: what was summed, and norms.
    assert len(waits) == 2 * 4
    assert not any("local_scalar" in name for name in many), many


@pytest.mark.parametrize("rows", [[0, 1, 2], [1], [2, 0]])
def test_places_are_where_adapters_steer(rows: Sequence[int]) -> None:
    widths = {"encoder.0": 2, "encoder.1": 2, "llm.0": 3}
    specs = [("a", ("encoder.0", "llm.0")), ("b", ("encoder.1",)), ("c", tuple(widths))]
    bank = Bank([AdapterSpec(name, sites, "add") for name, sites in specs], widths)
    with torch.no_grad():
        for number, site in enumerate(widths):
            bank.vectors[site].copy_(torch.arange(3).unsqueeze(1) + 10 * number)
    for block, (at, of) in zip(bank.blocks, bank.places(rows), strict=True):
        wanted = [
            (row, 10 * list(widths).index(site) + row)
            for site in block.sites
            for row in rows
            if site in specs[row][1]
        ]
        assert list(zip(of.tolist(), block.values[at][:, 0].tolist(), strict=True)) == wanted
