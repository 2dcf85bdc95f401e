"""The plan of a run or of its evaluation: base, step and DeepSpeed settings come from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salsa_dist.config import Config, PlacementConfig
from salsa_dist.data.entries import seconds_of
from salsa_dist.data.index import ShardIndex
from salsa_dist.planner.base_shape import ENCODER_TOKENS_PER_SECOND, BaseShape, read_shape
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.planner.plan import make_plan
from salsa_dist.planner.plan_table import Plan
from salsa_dist.planner.step_work import DEFAULT_CLIP_S, Machines, Work
from salsa_dist.steering.rules.registry import rule_named

_MOST = 256  # clips per pass with `training.micro_batch: auto`: more are no faster


def plan_of(
    config: Config,
    machines: Machines,
    *,
    training: bool = True,
    shape: BaseShape | None = None,
    long_s: float | None = None,
) -> Plan:
    """The plan of a run, or of its evaluation.

    Args:
        shape: of the base; None: it is read.
        long_s: seconds of the run's long clips; None: taken to be as long as any other.
    """
    placement = with_offload(config.placement if training else config.evaluation.placement)
    if shape is None:
        shape = shape_of_run(config, training)
    plan = partial(
        make_plan,
        shape,
        machines=machines,
        settings=user_settings(placement),
        offload=placement.offload,
        extra=[placement.kind] if isinstance(placement.kind, int) else [],
    )
    work = work_of(config, shape, training, long_s)
    if training and config.training.micro_batch == "auto":
        return _largest_passes(plan, work, placement)
    return plan(work)


def _largest_passes(plan: Callable[[Work], Plan], work: Work, placement: PlacementConfig) -> Plan:
    """The plan with the largest passes that fit, in the placement that passes of one clip have."""
    found = plan(work)
    kind = placement.kind
    if kind == "auto":
        row = found.chosen
    else:
        rows = (r for r in found.rows if r.offload == placement.offload)
        row = next((r for r in rows if kind in (r.placement, r.ranks_a_copy)), None)
    clips = 1
    while row is not None and clips < min(_MOST, work.clips / found.machines.world_size):
        clips *= 2
        larger = plan(replace(work, micro_batch=clips))
        if (own := larger.row(row.placement, row.offload)) is None or not own.fits:
            break
        found = larger
    return found


def shape_of_run(config: Config, training: bool = True) -> BaseShape:
    """The base as the run, or its evaluation at the longest window, would load it."""
    base, windows = config.base, config.evaluation.windows_s
    if training:
        window = config.base_in_training().window_s
    else:
        window = None if None in windows else max(w for w in windows if w is not None)
    dtype: str | None = base.dtype
    if dtype == "auto":  # of a run that has not begun; plans are for GPUs
        dtype = "float32" if config.device == "cpu" else None
    return read_shape(
        base.name,
        revision=base.revision,
        dtype=dtype,
        quantization=base.quantization,
        window_s=window,
        layers=base.layers,
    )


def plan_text(config: Config, nodes: int, ranks_per_node: int, memory: float) -> str:
    """The table of a run's plan, for a launcher's dry run.

    Args:
        memory: bytes of one device.

    Raises:
        UserError: the base's config can't be read here.
    """
    return plan_of(config, Machines(nodes, ranks_per_node, memory)).table()


def long_clip(index: ShardIndex, config: Config, training: bool = True) -> float:
    """Length in seconds that 99 of 100 clips of a run, or of its evaluation, do not exceed."""
    split = "train" if training else config.evaluation.split
    languages = {code for adapter in config.adapters for code in adapter.languages}
    lengths = [
        seconds_of(shard.entries)
        for shard in index.shards
        if shard.split == split and shard.language in languages
    ]
    return float(np.quantile(np.concatenate(lengths), 0.99)) if lengths else DEFAULT_CLIP_S


def work_of(
    config: Config, shape: BaseShape, training: bool = True, long_s: float | None = None
) -> Work:
    """The work of one step of a run: all adapters train, on clips of 10 s or of the window's length."""
    adapters = config.adapter_settings()
    window = config.base_in_training().window_s if training else None
    longest = shape.encoder_tokens / ENCODER_TOKENS_PER_SECOND if shape.encoder_tokens else None
    limits = [s for s in (window, longest) if s is not None]
    clip_s = min([DEFAULT_CLIP_S, *limits])
    clips = config.data.clips_of_a_step(clip_s) * len(adapters)
    return Work(
        clips=clips if training else config.evaluation.batch,
        micro_batch=config.training.clips_per_pass if training else config.evaluation.batch,
        sites=tuple(shape.sites(a.sites) for a in adapters),
        parts=max((rule_named(a.rule).parts for a in adapters), default=1),
        clip_s=clip_s,
        # A family that takes several windows of audio takes a long clip whole.
        long_s=long_s if long_s is None or not shape.encoder_decoder else min([long_s, *limits]),
        window_s=window,
        checkpointing=training and config.training.activation_checkpointing,
        training=training,
    )


def with_offload(placement: PlacementConfig) -> PlacementConfig:
    """`placement` with the offload that its own DeepSpeed config asks for, if it says none itself."""
    target = (user_settings(placement) or {}).get("offload_param") or {}
    if placement.offload != "none" or target.get("device", "none") == "none":
        return placement
    path = target.get("nvme_path")
    changes = {
        "offload": target["device"],
        "nvme_path": placement.nvme_path or (Path(path) if path else None),
    }
    return PlacementConfig.model_validate({**placement.model_dump(), **changes})


def user_settings(placement: PlacementConfig) -> Mapping[str, Any] | None:
    """The `zero_optimization` part of the user's own DeepSpeed config."""
    if placement.ds_config is None:
        return None
    settings = ds_settings(placement.ds_config, "full", torch.float32)
    found: Mapping[str, Any] = settings["zero_optimization"]
    return found
