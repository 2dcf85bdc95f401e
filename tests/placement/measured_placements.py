"""One rank of the planner's test: what placements hold and send, measured, beside what was planned.

    NETWORK=/proc/7/ns/net torchrun --nproc_per_node 4 measured_placements.py BASE OUT

Writes OUT/measured.json: for each case the plan's row and the bytes measured, those between ranks by
the counter of the loopback interface, which must be the job's own: NETWORK is the namespace to enter.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import silent_clip
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.measured import measured_facts, watched
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.planner.base_shape import read_shape
from salsa_dist.planner.plan import make_plan
from salsa_dist.planner.step_work import GLOO_MESSAGE_BYTES, Machines, Work
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import reduce_step

WINDOW_S = 1.5
# kind, ranks a node, small weights that stay whole, sites, checkpointing
CASES = (
    ("full", 1, 0, "encoder+llm", False),
    ("full", 2, 700, "encoder:1..+llm", True),
    ("node", 2, 0, "llm:last-half", False),
    ("replicate", 2, 0, "encoder", False),
)
STEPS = 3


def main(base: Path, out: Path) -> None:
    if network := os.environ["NETWORK"]:
        enter(network)
    with join() as ranks:
        found = [measure(base, out, ranks, *case) for case in CASES]
        if ranks.is_first:
            (out / "measured.json").write_text(json.dumps(found))


def enter(network: str) -> None:
    """A network namespace, by its path in /proc."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    descriptor = os.open(network, os.O_RDONLY)
    assert libc.setns(descriptor, 0) == 0, os.strerror(ctypes.get_errno())
    os.close(descriptor)


def measure(
    base_folder: Path, out: Path, ranks: Ranks, kind: str, own: int, small: int, sites: str, again: bool
) -> dict[str, Any]:
    ranks = replace(ranks, local_world_size=own, local_rank=ranks.rank % own)
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": small,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
    ds_config = out / f"ds-{small}-rank{ranks.rank}.json"
    ds_config.write_text(json.dumps({"zero_optimization": zero}))
    shape = read_shape(base_folder, dtype="float32", window_s=WINDOW_S)
    names = shape.sites(sites)
    work = Work(
        clips=2 * ranks.world_size,
        micro_batch=2,
        sites=(names, names[:1]),
        clip_s=WINDOW_S,
        text_tokens=10,
        labels=6,
        window_s=WINDOW_S,
        checkpointing=again,
    )
    machines = Machines(ranks.world_size // own, own, 1e9, message_bytes=GLOO_MESSAGE_BYTES)
    plan = make_plan(shape, work, machines, zero)
    planned = plan.row(kind)
    assert planned is not None

    speech_llm = load_speech_llm(base_folder, window_s=WINDOW_S)
    bank = Bank(
        [AdapterSpec("a", names, "salsa"), AdapterSpec("b", names[:1], "add")],
        {site: shape.width(site) for site in names},
    )
    base = FrozenBase(speech_llm, bank, ranks, PlacementConfig(kind=kind, ds_config=ds_config), again)
    clips = [replace(silent_clip("bg"), text="da ne", row=row) for row in (0, 1)]
    saved: dict[int, int] = {}

    def step() -> int:
        batch = base.family.training_batch(clips)
        losses = token_losses(base, batch)
        losses.sum().backward()
        base.after_backward()
        return reduce_step(bank, [0, 1], torch.zeros(2), torch.ones(2), stop=False).bytes

    step()
    with watched(base) as traffic:
        reduced = step()
    measured = measured_facts(base, traffic, reduced)
    sent = []
    for steps in (STEPS, 2 * STEPS):
        dist.barrier()
        before = loopback_bytes()
        for _ in range(steps):
            step()
        dist.barrier()
        sent.append(loopback_bytes() - before)
    own_weights = {p.data_ptr() for p in speech_llm.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own_weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = base.family.training_batch(clips)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        token_losses(base, batch)
    base.after_backward()
    base.close()
    return {
        "case": f"{kind}, {own} ranks a node",
        "planned": asdict(planned),
        "measured": measured,
        "sent_per_step": (sent[1] - sent[0]) / STEPS,
        "nodes": machines.nodes,
        "kept_bytes": sum(saved.values()),
        "base_bytes": base.base_bytes,
    }


def loopback_bytes() -> int:
    # Not /sys, which goes on showing the interfaces of the namespace that it was mounted in.
    (line,) = (x for x in Path("/proc/self/net/dev").read_text().splitlines() if "lo:" in x)
    return int(line.split(":")[1].split()[8])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
