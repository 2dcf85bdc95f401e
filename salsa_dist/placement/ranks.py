"""This process among its peers.

Launchers (submitit, torchrun, accelerate launch) set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; `join` makes the process group from them. Without them the world is this
one process, with a process group all the same, so that nothing else needs to ask.

Each rank says in the store which device it would take, and reads what the others say, before any group
is made: of ranks on gloo and ranks on NCCL each would wait for the other.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from salsa_dist.errors import UserError
from salsa_dist.libraries.torch import abort_groups, quiet_barriers
from salsa_dist.placement.peers import Peers

# Ranks may start that much apart, and torch lets no collective wait longer: the last resort, where a
# watchdog ends a job long before and says who hangs.
_TIMEOUT = timedelta(minutes=20)
T = TypeVar("T")
# Set by Slurm where a job, or a step of it, was given GPUs.
_SLURM_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")


@dataclass(frozen=True)
class Ranks:
    """This process's rank, and the world. Ranks of a node are consecutive.

    Attributes:
        peers: whom to tell of a failure; None: nobody.
        store: keys that all ranks of the group share; None: there is no other rank.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    peers: Peers | None = field(default=None, compare=False)
    store: dist.Store | None = field(default=None, compare=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def join(hang_after_s: float = 0.0, wanted: str = "auto") -> Iterator[Ranks]:
    """Join the process group that the launcher's environment describes; leave it at the end.

    Args:
        hang_after_s: `training.hang_after_s`, where a watchdog looks after the ranks.
        wanted: `device` of the config: cpu, cuda, or auto, which takes a GPU where there is one.

    Raises:
        UserError: the environment is not whole, or the ranks' devices do not fit together.
        TimeoutError: ranks never came; names them.
    """
    # A rank that waits for one that moves is to be ended by neither.
    timeout = max(_TIMEOUT, timedelta(seconds=4 * hang_after_s))
    env = os.environ
    rank, world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    local_rank = int(env.get("LOCAL_RANK", 0))
    local_world = int(env.get("LOCAL_WORLD_SIZE", world))
    mine = own_device(wanted, local_rank)
    if world > 1:
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise UserError(
                f"WORLD_SIZE is {world} but MASTER_ADDR or MASTER_PORT is not set: start this with "
                "launchers/slurm.py, torchrun or accelerate launch"
            )
        store: dist.Store = _meeting_place(rank, world)
        refuse_unlike(_wait_for_all(store, rank, world, mine))
    else:
        store = dist.HashStore()
        refuse_unlike([mine])
    device = torch.device("cpu")
    if mine["kind"] == "cuda":
        device = torch.device("cuda", mine["index"])
        torch.cuda.set_device(device)
        quiet_barriers()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    with ExitStack() as stack:
        peers = stack.enter_context(Peers(store, rank)) if world > 1 else None
        shared = store if world > 1 else None
        try:
            yield Ranks(rank, world, local_rank, local_world, device, peers, shared)
        except BaseException:
            abort_groups()  # to destroy them would wait for ranks that may wait for this one
            raise
        dist.destroy_process_group()


def own_device(wanted: str, local_rank: int) -> dict[str, Any]:
    """The device that this rank would use, with facts for the other ranks.

    `kind` is cuda or cpu; `index` and `gpu`, its number here and its identity, are a GPU's; `count` is
    how many this process sees; `problem` says why the rank can't start.
    """
    own: dict[str, Any] = {"host": socket.gethostname(), "local_rank": local_rank, "kind": "cpu"}
    own |= {"count": 0, "problem": ""}
    if wanted == "cpu":
        # Before anything has looked for a GPU: no library of this process is to find one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return own
    if not torch.cuda.is_available():
        given = next((n for n in _SLURM_GPUS if os.environ.get(n, "0") not in ("", "0")), None)
        if wanted == "cuda" or given:
            by = "device is cuda" if wanted == "cuda" else f"{given} is {os.environ[given or '']}"
            built = torch.version.cuda or torch.version.hip
            why = f"built for GPUs, {built}: look at the driver there" if built else "a build for CPUs"
            own["problem"] = f"{by}, and torch finds no GPU (torch {torch.__version__} is {why})"
        return own
    count = torch.cuda.device_count()
    own |= {"kind": "cuda", "count": count, "index": local_rank if count > 1 else 0}
    if own["index"] < count:
        uuid = torch.cuda.get_device_properties(own["index"]).uuid
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        own["gpu"] = f"{uuid} {shown}" if "MIG" in shown else str(uuid)  # parts of one GPU are several
    else:
        own["problem"] = f"it is number {local_rank} of its node, which shows {count} GPUs"
    return own


def refuse_unlike(devices: Sequence[Mapping[str, Any]]) -> None:
    """Refuse ranks whose devices do not fit together; the same line on each.

    Args:
        devices: `own_device` of every rank, by rank.

    Raises:
        UserError: a rank has no device, some have GPUs and others not, or two have the same GPU.
    """
    if wrong := [rank for rank, own in enumerate(devices) if own["problem"]]:
        own = devices[wrong[0]]
        more = f", and {len(wrong) - 1} ranks more" if len(wrong) > 1 else ""
        raise UserError(
            f"rank {wrong[0]} on {own['host']}{more}: {own['problem']}; start as many ranks a node as "
            "it has GPUs, fix the driver, or set device=cpu"
        )
    found = [rank for rank, own in enumerate(devices) if own["kind"] == "cuda"]
    lacking = [rank for rank, own in enumerate(devices) if own["kind"] == "cpu"]
    if found and lacking:
        raise UserError(
            f"{len(lacking)} of {len(devices)} ranks find no GPU, such as rank {lacking[0]} on "
            f"{devices[lacking[0]]['host']}, and the others do, such as rank {found[0]} on "
            f"{devices[found[0]]['host']}: fix that node, or set device=cpu for all"
        )
    taken: dict[tuple[str, str], int] = {}
    for rank in found:
        gpu = (devices[rank]["host"], devices[rank]["gpu"])
        if (other := taken.setdefault(gpu, rank)) != rank:
            raise UserError(
                f"rank {other} and rank {rank} on {gpu[0]} would share one GPU: start as many ranks a "
                "node as it has GPUs"
            )


_stores: list[dist.Store] = []
_joins = 0


def _meeting_place(rank: int, world: int) -> dist.Store:
    """The store at which the ranks of a further process group meet.

    The store behind it serves all groups of this process, one after another; each has keys of its own,
    since a rank must not take what a peer left there for the group before as its address.
    """
    global _joins
    if not _stores:
        _stores.append(_store(rank, world))
    _joins += 1
    return dist.PrefixStore(f"join-{_joins}", _stores[0])


def _wait_for_all(
    store: dist.Store, rank: int, world: int, mine: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The facts of every rank, once all ranks have joined."""
    store.set(f"here-{rank}", json.dumps(mine))
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
    everyone = [json.loads(said) for said in store.multi_get(list(keys.values()))]
    store.set(f"read-{rank}", "")
    if rank == 0:  # it has the store, and may be about to refuse and go
        store.wait([f"read-{other}" for other in range(world)], _TIMEOUT)
    return everyone


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


def from_first(ranks: Ranks, make: Callable[[], T]) -> T:
    """The result of `make` on rank 0; only rank 0 calls `make`. Every rank calls this.

    Raises:
        UserError: on all ranks, where `make` failed.
    """
    if ranks.world_size == 1:
        return make()
    told: list[Any] = [None, ""]
    if ranks.is_first:
        try:
            told[0] = make()
        except UserError as e:
            told[1] = str(e)
    dist.broadcast_object_list(told, src=0, device=ranks.device)
    if told[1]:
        raise UserError(told[1])
    made: T = told[0]
    return made


def group_size(kind: str | int, ranks: Ranks) -> int:
    """Shard group size: the number of consecutive ranks that share one copy of the base.

    Args:
        kind: `replicate` (1), `node`, `full` (all), or a number that divides the world.
    """
    named = {"replicate": 1, "node": ranks.local_world_size, "full": ranks.world_size}
    size = kind if isinstance(kind, int) else named[kind]
    if size < 1 or ranks.world_size % size:
        raise UserError(
            f"placement.kind is {kind}: {ranks.world_size} ranks can't be divided into groups of "
            f"{size}; use a number that divides them"
        )
    return size
