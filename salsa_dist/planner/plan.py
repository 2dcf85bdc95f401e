"""The estimated cost of each placement of a base on given machines, and the choice of `auto`.

    plan = make_plan(shape, work, machines)

    sizes ◄── step_work ◄── weight_bytes, step_cost, plan_table ◄── plan ◄── plan_of_run
              what is       bytes of weights, FLOPs and            here       of a config
              asked         activations, rows

    device    base between steps + gathered at the peak + activations + vectors + optimizer <= usable
    between   a ring passes each gather once over each link, so a node sends what a rank receives; the
              steering gradients' all-reduce sends 2(w-1)/w of their bytes, w ranks

Nothing here reads a weight, a clock or a GPU. What is exact: the base's bytes, gathers, FLOPs of
matrices. What is estimated: activations and seconds; see docs/placement.md for how well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from salsa_dist.planner.base_shape import BaseShape
from salsa_dist.planner.plan_table import Plan, Row
from salsa_dist.planner.step_cost import activation_bytes, flops
from salsa_dist.planner.step_work import USABLE, Machines, Work, steering_numbers
from salsa_dist.planner.units import size
from salsa_dist.planner.weight_bytes import gathered_at_peak, gathered_bytes, resident_bytes

_HOST_BANDWIDTH = 25e9  # bytes/s from host memory to one device: PCIe 4.0 x16 is 32e9 on paper


def make_plan(
    shape: BaseShape,
    work: Work,
    machines: Machines,
    settings: Mapping[str, Any] | None = None,
    offload: str = "none",
    extra: Sequence[int] = (),
) -> Plan:
    """Work out every placement.

    Args:
        settings: the `zero_optimization` part of a DeepSpeed config; None: those in ds_configs/.
        offload: what the config asks for; `auto` keeps to it, and goes to `cpu` by itself only from
            `none` where nothing else fits.
        extra: numbers of ranks a copy to plan besides, such as `placement.kind: 2`.
    """
    kinds = placements(machines, extra)
    offloads = dict.fromkeys(["none", "cpu", offload])
    rows = tuple(
        _row(shape, work, machines, kind, size_, how, settings)
        for how in offloads
        for kind, size_ in kinds.items()
    )
    chosen = next((r for r in rows if r.fits and r.offload == offload == "none"), None)
    if chosen is None:
        # Parts come from the host then, the fewer the ranks a copy the more of them: the quickest.
        ways = [r for r in rows if r.fits and r.offload == ("cpu" if offload == "none" else offload)]
        chosen = min(ways, key=lambda r: (r.step_s, r.bytes_between_nodes_per_step), default=None)
    return Plan(shape, work, machines, rows, chosen, _why(shape, rows, chosen, machines))


def placements(machines: Machines, extra: Sequence[int] = ()) -> dict[str | int, int]:
    """Kinds of placement on these machines and the ranks that share a copy, fewest first."""
    own, world = machines.ranks_per_node, machines.world_size
    kinds: dict[str | int, int] = {"replicate": 1}
    kinds |= {k: k for k in extra if 1 < k < world}
    if own > 1:
        kinds["node"] = own
    k = 2
    while k < machines.nodes:
        if machines.nodes % k == 0:
            kinds[k * own] = k * own
        k *= 2
    if machines.nodes > 1:
        kinds["full"] = world
    return dict(sorted(kinds.items(), key=lambda entry: entry[1]))


def _row(
    shape: BaseShape,
    work: Work,
    machines: Machines,
    kind: str | int,
    ranks: int,
    offload: str,
    settings: Mapping[str, Any] | None,
) -> Row:
    world, own = machines.world_size, machines.ranks_per_node
    share = max(1, -(-work.clips // world)) if work.training else work.micro_batch
    passes = -(-share // work.micro_batch)
    base = resident_bytes(shape, ranks, offload, settings)
    peak = base
    whole = ranks == 1 and offload == "none"
    if not whole:
        peak += gathered_at_peak(shape, work.checkpointing and work.training, settings)
    bank, reduced = steering_numbers(shape, work)
    steering = 4 * (2 * bank + reduced) if work.training else 4 * bank
    # Two moments, and where a rate is estimated two tensors more.
    optimizer = 16 * bank if work.training else 0
    activations = activation_bytes(shape, work, -(-share // passes))
    device = peak + activations + steering + optimizer
    parts = sum(-(-w.numel // ranks) * w.itemsize for w in shape.weights)
    offloaded = own * parts if offload != "none" else 0
    gathers = passes * gathered_bytes(shape, work, ranks, settings)
    ring = 0
    if work.training:
        ring = round(2 * (world - 1) * (4 * reduced / world + machines.message_bytes))
    across = ranks > own
    inside = (own - 1 if across else own) * gathers + (own - 1) * ring
    between = (gathers if across else 0) + (ring if machines.nodes > 1 else 0)
    total_flops = flops(shape, work)
    compute = total_flops / world / (machines.flops * machines.mfu)
    from_host = 0.0
    if offload != "none":
        # Of what two ranks would send each other, twice over, each of `ranks` fetches its share.
        from_host = passes * gathered_bytes(shape, work, 2, settings) * 2 / ranks / _HOST_BANDWIDTH
    transfer = max(gathers / machines.node_bandwidth, between / machines.network_bandwidth, from_host)
    enough = (
        machines.host_memory is None or offload != "cpu" or offloaded <= USABLE * machines.host_memory
    )
    return Row(
        placement=kind,
        ranks_a_copy=ranks,
        offload=offload,
        base_bytes=base,
        peak_base_bytes=peak,
        activation_bytes=activations,
        steering_bytes=steering,
        optimizer_bytes=optimizer,
        device_bytes=device,
        offloaded_bytes_per_node=offloaded,
        gathered_bytes_per_step=gathers,
        bytes_inside_node_per_step=inside if own > 1 else 0,
        bytes_between_nodes_per_step=between,
        flops_per_step=total_flops,
        compute_s=compute,
        transfer_s=transfer,
        step_s=max(compute, transfer),
        fits=device <= USABLE * machines.memory and enough and (whole or shape.quantized is None),
    )


def _why(shape: BaseShape, rows: Sequence[Row], chosen: Row | None, machines: Machines) -> str:
    limit = f"{size(USABLE * machines.memory)} usable"
    if chosen is None and shape.quantized is not None:
        return (
            f"auto: base {shape.name} is quantised ({shape.quantized}), so it lies whole on each "
            f"device and needs {size(rows[0].device_bytes)} of {limit}: set placement.offload=none"
        )
    if chosen is None:
        least = min(rows, key=lambda r: r.device_bytes)
        return (
            f"auto: nothing fits {limit} a device; {least.name} needs the least, "
            f"{size(least.device_bytes)}: take more or larger devices, fewer clips in "
            "training.micro_batch, or training.activation_checkpointing"
        )
    smaller = [r for r in rows if r.offload == chosen.offload and r.ranks_a_copy < chosen.ranks_a_copy]
    if chosen.offload != "none":
        reason = "nothing fits without offload"
    elif smaller:
        reason = f"{smaller[-1].name} needs {size(smaller[-1].device_bytes)}"
    else:
        reason = "a whole copy fits each device, and no weight need travel"
    return f"auto: {chosen.name}, {size(chosen.device_bytes)} of {limit} a device: {reason}"
