"""This process among its peers.

Launchers (submitit, torchrun, accelerate launch) set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; `join` makes the process group from them. Without them the world is this
one process, with a process group all the same, so that nothing else needs to ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from salsa_dist.errors import UserError

# A rank that waits longer than this for its peers gives up; loading a large base takes minutes.
_TIMEOUT = timedelta(minutes=20)


@dataclass(frozen=True)
class Ranks:
    """Who this process is. Ranks of a node are consecutive."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def join() -> Iterator[Ranks]:
    """Join the process group that the launcher's environment describes; leave it at the end."""
    env = os.environ
    rank, world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    local_rank = int(env.get("LOCAL_RANK", 0))
    local_world = int(env.get("LOCAL_WORLD_SIZE", world))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world > 1:
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise UserError(
                f"WORLD_SIZE is {world} but MASTER_ADDR or MASTER_PORT is not set: start this with "
                "launchers/slurm.py, torchrun or accelerate launch"
            )
        store = _store_on_socket(world) if rank == 0 and "SALSA_RENDEZVOUS_FD" in env else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore(), timeout=_TIMEOUT)
    try:
        yield Ranks(rank, world, local_rank, local_world, device)
    finally:
        dist.destroy_process_group()


def _store_on_socket(world: int) -> dist.Store:
    """Where ranks find each other, on the port that the launcher has held since the job's start."""
    env = os.environ
    store = dist.TCPStore(
        env["MASTER_ADDR"],
        int(env["MASTER_PORT"]),
        world,
        is_master=True,
        timeout=_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=int(env.pop("SALSA_RENDEZVOUS_FD")),
    )
    # As torch does with a store of its own making, which is what the other ranks have.
    return dist.PrefixStore("default_pg", store)


def group_size(kind: str | int, ranks: Ranks) -> int:
    """How many consecutive ranks share one copy of the base.

    Args:
        kind: `replicate` (1), `node`, `full` (all), or a number that divides the world.
    """
    named = {"replicate": 1, "node": ranks.local_world_size, "full": ranks.world_size}
    size = kind if isinstance(kind, int) else named[kind]
    if size < 1 or ranks.world_size % size:
        raise UserError(
            f"placement.kind is {kind}: {ranks.world_size} ranks can't be cut into groups of {size}; "
            "take a number that divides them"
        )
    return size
