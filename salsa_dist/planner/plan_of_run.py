"""The plan of a run or of its evaluation: base, step and DeepSpeed settings taken from its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from salsa_dist.config import Config, PlacementConfig
from salsa_dist.planner.base_shape import ENCODER_TOKENS_PER_SECOND, BaseShape, read_shape
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.planner.plan import make_plan
from salsa_dist.planner.plan_table import Plan
from salsa_dist.planner.step_work import DEFAULT_CLIP_S, Machines, Work


def plan_of(
    config: Config, machines: Machines, *, training: bool = True, shape: BaseShape | None = None
) -> Plan:
    """The plan of a run, or of its evaluation."""
    placement = with_offload(config.placement if training else config.evaluation.placement)
    if shape is None:
        shape = shape_of_run(config, training)
    return make_plan(
        shape,
        work_of(config, shape, training),
        machines,
        user_settings(placement),
        placement.offload,
        [placement.kind] if isinstance(placement.kind, int) else [],
    )


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
        base.name, revision=base.revision, dtype=dtype, window_s=window, layers=base.layers
    )


def plan_text(config: Config, nodes: int, ranks_per_node: int, memory: float) -> str:
    """The table of a run's plan, for a launcher's dry run.

    Args:
        memory: bytes of one device.

    Raises:
        UserError: the base's config can't be read here.
    """
    return plan_of(config, Machines(nodes, ranks_per_node, memory)).table()


def work_of(config: Config, shape: BaseShape, training: bool = True) -> Work:
    """One step of a run: all adapters at work, clips of 10 s or as long as the window."""
    adapters = config.adapter_settings()
    window = config.base_in_training().window_s if training else None
    longest = shape.encoder_tokens / ENCODER_TOKENS_PER_SECOND if shape.encoder_tokens else None
    clip_s = min([DEFAULT_CLIP_S, *(s for s in (window, longest) if s is not None)])
    clips = config.data.clips_of_a_step(clip_s) * len(adapters)
    return Work(
        clips=clips if training else config.evaluation.batch,
        micro_batch=config.training.micro_batch if training else config.evaluation.batch,
        sites=tuple(shape.sites(a.sites) for a in adapters),
        clip_s=clip_s,
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
