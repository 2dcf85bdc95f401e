"""Measures a placement: bytes of the base per rank, and bytes that a step sends.

with watched(base) as traffic:
    … one step …
measured_facts(base, traffic, reduced_bytes)    over all ranks; the `placement` event
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.zero import StepTraffic


@contextmanager
def watched(base: FrozenBase) -> Iterator[StepTraffic]:
    """Measure the passes inside the block; see `StepTraffic`."""
    if base.zero is None:
        yield StepTraffic(peak_bytes=base.base_bytes)
    else:
        with base.zero.watched() as traffic:
            yield traffic


def measured_facts(base: FrozenBase, traffic: StepTraffic, reduced_bytes: int) -> dict[str, Any]:
    """The placement as measured, over all ranks: each number is of the rank with the most.

    Between nodes goes what was gathered, if the ranks of a copy are on several, and what was
    reduced, on a ring: a node sends 2 (w - 1) / w of it, w ranks. Frames are not counted.
    """
    world, on_node = base.ranks.world_size, base.ranks.local_world_size
    between = traffic.gathered_bytes if base.size > on_node else 0
    if world > on_node:
        between += round(2 * (world - 1) / world * reduced_bytes)
    own = {
        "resident_bytes_between_steps": resident_bytes(base),
        "partitioned_bytes": base.zero.part_bytes() if base.zero else 0,
        "peak_bytes": traffic.peak_bytes,
        "gathered_bytes_per_step": traffic.gathered_bytes,
        "reduced_bytes_per_step": reduced_bytes,
        "bytes_between_nodes_per_step": between,
    }
    most = torch.tensor(list(own.values()), dtype=torch.int64, device=base.ranks.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return {
        "kind": str(base.kind),
        "world_size": world,
        "group_size": base.size,
        "base_bytes": base.base_bytes,
        "threshold_bytes": base.zero.threshold_bytes if base.zero else 0,
        **dict(zip(own, most.tolist(), strict=True)),
    }


def as_loaded(base: FrozenBase) -> str:
    """The placement as measured before the first step, for the log; all ranks call this."""
    held = torch.tensor(resident_bytes(base), dtype=torch.int64, device=base.ranks.device)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    most, whole = int(held), base.base_bytes
    sharing = f"{base.size} share a copy" if base.size > 1 else "each has a copy"
    return (
        f"placement {base.kind} as loaded: {base.ranks.world_size} ranks, {sharing}; a rank holds "
        f"{most / 1e6:.1f} MB of the base's {whole / 1e6:.1f} ({most / whole:.0%}) on its device"
    )


def resident_bytes(base: FrozenBase) -> int:
    """Bytes of the base on this rank's device now."""
    return base.base_bytes if base.zero is None else base.zero.resident_bytes()
