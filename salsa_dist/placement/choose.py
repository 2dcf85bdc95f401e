"""Chooses the placement of a run: at its start, equally on all ranks, before any weight is read.

    placed = choose(config, ranks)                    of training
    placed = choose(config, ranks, training=False)    of evaluation
    placed.placement   the config's, with `auto` replaced by what it came to
    placed.lines       for the run's first lines: what was taken and why

A placement that can't work is refused here, with the plan's table, so that nobody waits minutes for a
base to load and then fail.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.config import Config, PlacementConfig
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.libraries.deepspeed import why_no_async_io
from salsa_dist.machine import free_memory, memory
from salsa_dist.placement.ranks import Ranks, from_first, group_size
from salsa_dist.planner.base_shape import BaseShape
from salsa_dist.planner.plan_of_run import (
    long_clip,
    plan_of,
    shape_of_run,
    user_settings,
    with_offload,
)
from salsa_dist.planner.plan_table import Plan, Row
from salsa_dist.planner.step_work import GLOO_MESSAGE_BYTES, Machines
from salsa_dist.planner.units import size

# Switches of DeepSpeed that keep or send weights as int8. On frozen weights cut before `initialize`
# the int8 parts came out all zero, and cut after it nothing was quantised (tried with 0.19.8).
_INT8 = ("zero_quantized_nontrainable_weights", "zero_quantized_weights")


@dataclass(frozen=True)
class Placed:
    """The chosen placement.

    Attributes:
        placement: with a kind that is not `auto`.
        row: what the plan says of it.
        shape: of the base.
        micro_batch: clips per pass that it is planned with.
        why: one line for the log and the `placement` event.
        warning: where it may not fit after all; None: it should.
    """

    placement: PlacementConfig
    row: Row
    shape: BaseShape
    micro_batch: int
    why: str
    warning: str | None

    @property
    def lines(self) -> list[str]:
        return [self.why, *([self.warning] if self.warning else [])]


def choose(
    config: Config, ranks: Ranks, *, training: bool = True, index: ShardIndex | None = None
) -> Placed:
    """Choose the placement of a run or of its evaluation. All ranks call this.

    Args:
        index: of its shards, for the lengths of clips.

    Raises:
        UserError: the placement can't work here; the plan's table is in its text.
    """
    placement = with_offload(config.placement if training else config.evaluation.placement)
    section = "placement" if training else "evaluation.placement"
    if training and not config.method.learns:
        placement = PlacementConfig(kind="replicate")  # means are taken over whole copies
    if config.method.needs_whole_base:
        _refuse_sharded(config, placement, section)
    if placement.kind == "auto" and not config.method.steers:
        placement = placement.model_copy(update={"kind": "replicate"})
    even = _even_ranks(ranks)
    machines = this_job(ranks)
    shape = _hub_shape(config, ranks, training)
    long_s = None if index is None else long_clip(index, config, training)
    plan = plan_of(config, machines, training=training, shape=shape, long_s=long_s)
    placed, refused = None, ""
    try:
        placed = decide(plan, placement, section, even)
    except UserError as e:
        refused = str(e)
    # A disk or a library may be missing on one node alone: all say so, and none waits for it.
    everywhere = [""] * ranks.world_size
    dist.all_gather_object(everywhere, refused)
    if said := next(filter(None, everywhere), ""):
        raise UserError(said)
    assert placed is not None
    return placed


def _hub_shape(config: Config, ranks: Ranks, training: bool) -> BaseShape | None:
    """The shape of a base on a hub, which only rank 0 asks; None for a folder.

    Raises:
        UserError: on all ranks.
    """
    if Path(config.base.name).is_dir() or ranks.world_size == 1:
        return None
    return from_first(ranks, lambda: shape_of_run(config, training))


def _refuse_sharded(config: Config, placement: PlacementConfig, section: str) -> None:
    """Refuse a shared base for methods that change weights, or generate per rank."""
    if placement.kind not in ("replicate", "auto", 1) or placement.offload != "none":
        raise UserError(
            f"method {config.method.kind} needs the whole base on each rank: set {section}.kind to "
            "replicate and offload to none"
        )


def decide(plan: Plan, placement: PlacementConfig, section: str, even: bool = True) -> Placed:
    """The placement that `plan` leads to.

    Args:
        section: where in the config it is set, for errors.
        even: whether all nodes have as many ranks.
    """
    problems: list[str] = []
    machines = plan.machines
    world = machines.world_size
    row: Row | None
    if placement.kind == "auto":
        row = plan.chosen
        if row is None:
            problems.append(plan.why)
    else:
        row = _row_of(plan, placement, section, problems)
    kind = placement.kind if row is None else row.placement
    if kind == "node" and not even:
        problems.append(
            f"{section}.kind is node, but the nodes have unequal numbers of ranks: start as many on "
            "each, or take full or replicate"
        )
    sharded = row is not None and (row.ranks_a_copy > 1 or row.offload != "none")
    if sharded:
        problems += _int8(plan, placement, section)
    if row is not None:
        problems += _no_target(plan, placement, row, section)
        problems += _too_little(row, machines, section)
    if problems or row is None:
        raise UserError("; ".join(problems) + "\n" + plan.table())
    warning = None
    if not row.fits:
        warning = (
            f"placement {row.name} may not fit: about {size(row.device_bytes)} a device of "
            f"{size(machines.memory)}, activations {size(row.activation_bytes)} of it by estimate"
        )
    if placement.kind == "auto":
        why = plan.why.replace("auto:", "placement auto takes", 1)
    else:
        why = f"placement {row.name} as set: about {size(row.device_bytes)} a device of " + size(
            machines.memory
        )
    taken = placement.model_copy(update={"kind": row.placement, "offload": row.offload})
    assert world % row.ranks_a_copy == 0
    return Placed(taken, row, plan.shape, plan.work.micro_batch, why, warning)


def this_job(ranks: Ranks) -> Machines:
    """The machines of the running job: of all ranks' memories the least, so that all agree."""
    if ranks.device.type == "cuda":
        own = float(torch.cuda.get_device_properties(ranks.device).total_memory)
        host = memory()
    else:
        host = free_memory()
        own = host / ranks.local_world_size
    least = torch.tensor([own, host], dtype=torch.float64, device=ranks.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    own, host = least.tolist()
    nodes = max(1, ranks.world_size // ranks.local_world_size)
    frames = GLOO_MESSAGE_BYTES if ranks.device.type == "cpu" else 0
    return Machines(nodes, ranks.world_size // nodes, own, host, message_bytes=frames)


def _even_ranks(ranks: Ranks) -> bool:
    """Whether every node has as many ranks."""
    own = torch.tensor([ranks.local_world_size, -ranks.local_world_size], device=ranks.device)
    dist.all_reduce(own, op=dist.ReduceOp.MAX)
    most, least = own.tolist()
    return bool(most == -least and ranks.world_size % ranks.local_world_size == 0)


def _row_of(plan: Plan, placement: PlacementConfig, section: str, problems: list[str]) -> Row | None:
    machines = plan.machines
    alone = Ranks(0, machines.world_size, 0, machines.ranks_per_node, torch.device("cpu"))
    try:
        ranks = group_size(placement.kind, alone)
    except UserError as e:
        problems.append(str(e).replace("placement.kind", f"{section}.kind", 1))
        return None
    rows = [r for r in plan.rows if r.ranks_a_copy == ranks and r.offload == placement.offload]
    row = next((r for r in rows if r.placement == placement.kind), rows[0])
    return Row(**{**vars(row), "placement": placement.kind})


def _int8(plan: Plan, placement: PlacementConfig, section: str) -> list[str]:
    """Sharded int8 weights are not known to come back as they were."""
    settings: Any = user_settings(placement) or {}
    found = [name for name in _INT8 if settings.get(name)]
    problems = [
        f"{section}.ds_config {placement.ds_config} sets {name}: on a frozen base DeepSpeed's int8 "
        "weights come back as zeros; take it out"
        for name in found
    ]
    if plan.shape.quantized:
        problems.append(
            f"base {plan.shape.name} is quantised ({plan.shape.quantized}), and its weights can't be "
            f"partitioned or offloaded: set {section}.kind=replicate and {section}.offload=none, or "
            "take it in bfloat16"
        )
    return problems


def _no_target(plan: Plan, placement: PlacementConfig, row: Row, section: str) -> list[str]:
    """Errors of the offload target: missing, or too small."""
    need = row.offloaded_bytes_per_node
    if row.offload == "cpu":
        host = plan.machines.host_memory
        if host is not None and need > host:
            return [f"{section}.offload is cpu: a node would need {size(need)}, it has {size(host)}"]
    if row.offload != "nvme":
        return []
    if placement.nvme_path is None:
        return [f"{section}.offload is nvme: say in {section}.nvme_path which folder"]
    there = next(
        p for p in [placement.nvme_path, *placement.nvme_path.absolute().parents] if p.exists()
    )
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return [f"{section}.nvme_path {placement.nvme_path} can't be written to: name a local folder"]
    free = shutil.disk_usage(there).free
    if need > free:
        return [
            f"{section}.nvme_path {placement.nvme_path} has {size(free)} free, a node would need "
            + size(need)
        ]
    if (lacking := why_no_async_io()) is not None:
        return [
            f"{section}.offload is nvme: DeepSpeed's async_io can't be built here, {lacking}, or take "
            f"{section}.offload=cpu"
        ]
    return []


def _too_little(row: Row, machines: Machines, section: str) -> list[str]:
    """Errors if base and vectors alone do not fit; estimates of activations do not count."""
    sure = row.peak_base_bytes + row.steering_bytes + row.optimizer_bytes
    if sure <= machines.memory:
        return []
    return [
        f"{section} {row.name} needs {size(sure)} on each device for the base and the vectors alone, "
        f"which has {size(machines.memory)}: take a placement of the table that fits"
    ]
