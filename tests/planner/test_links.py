"""Measured links beside those that a plan counts on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from salsa_dist.planner.links import slower_than_planned
from salsa_dist.planner.plan_table import Row


def _row(**changes: Any) -> Row:
    numbers = {field.name: 0 for field in fields(Row)}
    return Row(**{**numbers, "placement": "full", "offload": "none", "fits": True, **changes})


def test_slower_links_than_the_plan_counts_on_are_said_with_what_they_cost() -> None:
    row = _row(gathered_bytes_per_step=10**9, bytes_between_nodes_per_step=10**9, transfer_s=1e9 / 25e9)
    (line,) = slower_than_planned(row, inside_gbps=2000, between_gbps=8)
    assert "8 Gbit/s between nodes where the plan counts on 200" in line
    assert "inside" not in line
    assert line.endswith("a step of full moves takes about 1 s, not 0.04")
    assert not slower_than_planned(row, inside_gbps=2000, between_gbps=190)
    assert not slower_than_planned(row, inside_gbps=2000, between_gbps=None), "one node has no link"
    nothing = _row(gathered_bytes_per_step=0, bytes_between_nodes_per_step=0)
    assert not slower_than_planned(nothing, inside_gbps=1, between_gbps=1), "no traffic, no matter"
