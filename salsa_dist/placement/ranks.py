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
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.errors import UserError

# Ranks may start that much apart, and torch lets no collective wait longer: the last resort, where a
# watchdog ends a job long before and says who hangs.
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
def join(hang_after_s: float = 0.0) -> Iterator[Ranks]:
    """Join the process group that the launcher's environment describes; leave it at the end.

    Args:
        hang_after_s: `training.hang_after_s`, where a watchdog looks after the ranks.

    Raises:
        UserError: the environment is not whole.
        TimeoutError: ranks never came; names them.
    """
    # A rank that waits for one that moves is to be ended by neither.
    timeout = max(_TIMEOUT, timedelta(seconds=4 * hang_after_s))
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
        store = _meeting_place(rank, world)
        _wait_for_all(store, rank, world)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    else:
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore(), timeout=timeout)
    try:
        yield Ranks(rank, world, local_rank, local_world, device)
    finally:
        dist.destroy_process_group()


_stores: list[dist.Store] = []
_joins = 0


def _meeting_place(rank: int, world: int) -> dist.Store:
    """Where the ranks of one more process group find each other.

    The store behind it serves all groups of this process, one after another; each has keys of its own,
    since a rank must not take what a peer left there for the group before as its address.
    """
    global _joins
    if not _stores:
        _stores.append(_store(rank, world))
    _joins += 1
    return dist.PrefixStore(f"join-{_joins}", _stores[0])


def _wait_for_all(store: dist.Store, rank: int, world: int) -> None:
    """Until every rank has come to the meeting place."""
    store.set(f"here-{rank}", "")
    keys = {other: f"here-{other}" for other in range(world)}
    try:
        store.wait(list(keys.values()), _TIMEOUT)
    except dist.DistError as e:
        missing = [other for other, key in keys.items() if not store.check([key])]
        if not missing:
            raise
        named = ", ".join(map(str, missing[:16])) + (" …" if len(missing) > 16 else "")
        raise TimeoutError(
            f"rank {rank} of {world} waited {_TIMEOUT.total_seconds():g} s for rank {named}, which "
            "never came: look at the log of that rank, or at its node"
        ) from e


def _store(rank: int, world: int) -> dist.Store:
    """The store that torch's `env://` would make, but for waiting: who is missing is found out here.

    The first rank has it, on the port that its launcher has held since the job began, or torchrun.
    """
    env = os.environ
    with_launcher = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    held: dict[str, Any] = {}
    if rank == 0 and not with_launcher and "SALSA_RENDEZVOUS_FD" in env:
        held["master_listen_fd"] = int(env.pop("SALSA_RENDEZVOUS_FD"))
    return dist.TCPStore(
        env["MASTER_ADDR"],
        int(env["MASTER_PORT"]),
        world,
        is_master=rank == 0 and not with_launcher,
        timeout=_TIMEOUT,
        wait_for_workers=False,
        **held,
    )


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
