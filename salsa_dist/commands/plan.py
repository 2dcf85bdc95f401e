"""`salsa-dist plan`: the estimated cost of each placement."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from salsa_dist.log import result

if TYPE_CHECKING:
    from salsa_dist.config import Config
    from salsa_dist.planner.shard_link import ShardLink

# For which a store is tried: the plan does without it. A read is told after TELL_S: one line tells.
RETRY_S = 3.0


def plan(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of a run, for base, sites and batch")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="instead of CONFIG: folder (config.json is enough) or hub name of a base"),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="number of nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="devices per node, one rank each")] = 8,
    gpu: Annotated[
        str | None,
        typer.Option(help="kind of device: A100, H100, H200, B200 or MI300X; default: A100"),
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="memory per device, such as 24GB; default: as --gpu has")
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(help="host memory per node, for CPU offload; default: assumed sufficient"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="clips per step, over all ranks")] = 64,
    micro_batch: Annotated[int, typer.Option(min=1, help="clips per pass on one rank")] = 16,
    window_s: Annotated[
        float | None, typer.Option("--window", help="audio window in seconds; default: the base's own")
    ] = None,
    clip_s: Annotated[float, typer.Option("--clip-seconds", help="length of a clip in seconds")] = 10.0,
    sites: Annotated[
        str, typer.Option(help="steered sites, such as encoder:last-half+llm")
    ] = "encoder",
    adapters: Annotated[int, typer.Option(min=1, help="number of adapters in the bank")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="recompute activations in the backward pass")
    ] = False,
    quantization: Annotated[
        str | None, typer.Option(help="of the base while it is loaded: int8, bnb8 or nf4")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="precision: float32, bfloat16 or float16; default: as stored")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="peak TFLOP/s per device, dense bf16; default: as --gpu has")
    ] = None,
    mfu: Annotated[
        float, typer.Option(help="achieved share of the peak; Llama 3 reports 0.38 to 0.43")
    ] = 0.4,
    node_bandwidth: Annotated[
        str | None,
        typer.Option(
            help="bytes per second into a device, within its node; default: 0.8 of the peak of --gpu"
        ),
    ] = None,
    network_bandwidth: Annotated[
        str, typer.Option(help="bytes per second out of a node; 25GB: one 200 Gb/s port")
    ] = "25GB",
    ds_config: Annotated[
        Path | None,
        typer.Option(help="DeepSpeed config that sets the thresholds; default: from ds_configs/"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show the cost of each placement of a base, which ones fit, and which one `auto` selects.

    Only the base's config and the headers of its weight files are read. With CONFIG the options about
    the base and the batch are the run's own.
    """
    from salsa_dist.config import PlacementConfig, load_config
    from salsa_dist.errors import UserError
    from salsa_dist.planner.base_shape import ENCODER_TOKENS_PER_SECOND, read_shape
    from salsa_dist.planner.devices import named
    from salsa_dist.planner.plan import make_plan
    from salsa_dist.planner.plan_of_run import plan_of, user_settings, with_offload
    from salsa_dist.planner.step_work import Machines, Work
    from salsa_dist.planner.units import parse_size
    from salsa_dist.versions import warn_if_outside

    warn_if_outside()
    if (config is None) == (base is None):
        raise UserError("give either a run's CONFIG or a base with --base")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {dtype} is not known: float32, bfloat16 or float16")
    device = named(gpu or "A100")
    machines = Machines(
        nodes,
        gpus_per_node,
        device.memory if gpu_memory is None else parse_size(gpu_memory),
        None if host_memory is None else parse_size(host_memory),
        device.received if node_bandwidth is None else parse_size(node_bandwidth),
        parse_size(network_bandwidth),
        device.flops if tflops is None else tflops * 1e12,
        mfu,
    )
    link = None
    if config is not None:
        run = load_config(config)
        found = plan_of(run, machines)
        if found.chosen is not None:
            link = _shard_link(run, nodes, found.chosen.step_s)
    else:
        assert base is not None
        shape = read_shape(base, dtype=dtype, quantization=quantization, window_s=window_s)
        longest = shape.encoder_tokens / ENCODER_TOKENS_PER_SECOND if shape.encoder_tokens else clip_s
        work = Work(
            clips=batch,
            micro_batch=micro_batch,
            sites=(shape.sites(sites),) * adapters,
            clip_s=min(clip_s, longest),
            window_s=window_s,
            checkpointing=checkpointing,
        )
        placement = with_offload(PlacementConfig(ds_config=ds_config))
        found = make_plan(shape, work, machines, user_settings(placement), placement.offload)
    if as_json:
        shards = {"shards": asdict(link)} if link else {}
        result(json.dumps({**found.tree(), "gpu": asdict(device), **shards}, indent=1))
    else:
        told = [device.line()] if gpu else []
        result("\n".join([*told, found.table(), *([link.line()] if link else [])]))


def _shard_link(config: Config, nodes: int, planned_s: float) -> ShardLink | None:
    """The traffic of shards from a store. A run that has made steps uses its median measured step time.

    None with a warning where their index can't be had: plans are made where no run is, without its
    credentials or its network.
    """
    from salsa_dist.data.index import ShardIndex
    from salsa_dist.errors import UserError
    from salsa_dist.log import log
    from salsa_dist.places import Remote
    from salsa_dist.planner.shard_link import shard_link
    from salsa_dist.run import events

    shards = config.data.shards
    if not isinstance(shards, Remote):
        return None
    retry_s = min(shards.cache.retry_s, RETRY_S)
    try:
        index = ShardIndex.load(replace(shards, cache=replace(shards.cache, retry_s=retry_s)))
    except UserError as e:
        log.warning(f"the plan is without the link to shards: {e}")
        return None
    steps = [e["seconds"] for e in events.read(config.run) if e["event"] == "step"][-100:]
    return shard_link(config, index, nodes, planned_s, median(steps) if steps else None)
