"""A plan's traffic on measured links, if they are slower than the plan assumes."""

from __future__ import annotations

from salsa_dist.planner.plan_table import Row
from salsa_dist.planner.step_work import Machines

_SLOW = 3.0  # times slower than planned is worth a word


def slower_than_planned(row: Row, inside_gbps: float | None, between_gbps: float | None) -> list[str]:
    """The time of `row`'s traffic on the measured links, in one line; none if as planned.

    The formula of the time is the plan's own (planner/plan.py).

    Args:
        inside_gbps: the slowest link inside a node, Gbit/s; None: there is none.
        between_gbps: the slowest link between two nodes.
    """
    links = [
        ("inside", inside_gbps, Machines.node_bandwidth, row.gathered_bytes_per_step),
        ("between", between_gbps, Machines.network_bandwidth, row.bytes_between_nodes_per_step),
    ]
    slow, took_s = [], 0.0
    for where, found, planned, moved in links:
        if not found or not moved:
            continue
        took_s = max(took_s, moved * 8 / (found * 1e9))
        if found * 1e9 < planned * 8 / _SLOW:
            wanted = planned * 8 / 1e9
            slow.append(f"{found:.3g} Gbit/s {where} nodes where the plan counts on {wanted:.4g}")
    if not slow:
        return []
    return [
        f"links: {', '.join(slow)}; what a step of {row.name} moves takes about "
        f"{took_s:.2g} s, not {row.transfer_s:.2g}"
    ]
