"""Bytes of the base's weights that a rank holds, and that it receives in a step.

    held      between steps: ceil(n/k) numbers of each weight of n, k ranks a copy; small weights whole
    at peak   + the module in use (checkpointing: its layer) and what is fetched ahead
    a gather  a rank receives (k-1) parts of ceil(n/k) numbers of each weight
    a pass    gathers every weight for its forward, and for its backward what is above the first site

`settings` is everywhere the `zero_optimization` part of a DeepSpeed config; None: those in ds_configs/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from salsa_dist.planner.base_shape import BaseShape
from salsa_dist.planner.ds_settings import ds_settings
from salsa_dist.planner.step_work import Work, differentiated, first_layer, recomputed


def resident_bytes(
    shape: BaseShape, ranks: int, offload: str = "none", settings: Mapping[str, Any] | None = None
) -> int:
    """Bytes of the base that one device holds between steps."""
    knobs = _knobs(settings)
    if ranks == 1 and offload == "none":
        return shape.bytes
    whole = _persistent(shape, knobs)
    total = shape.buffer_bytes
    for i, weight in enumerate(shape.weights):
        part = -(-weight.numel // ranks) * weight.itemsize
        # A weight that stays whole is held twice: as a part, and gathered.
        total += part + weight.bytes if i in whole else part if offload == "none" else 0
    return total


def gathered_at_peak(
    shape: BaseShape, checkpointing: bool, settings: Mapping[str, Any] | None = None
) -> int:
    """Largest number of bytes of gathered weights: the module in use, and prefetched weights."""
    knobs = _knobs(settings)
    whole = _persistent(shape, knobs)
    apart = {i: w for i, w in enumerate(shape.weights) if i not in whole}
    everything = sum(w.bytes for w in apart.values())
    held: dict[int | str, int] = {}
    for place, m in enumerate(shape.modules):
        # Checkpointing recomputes a layer before its backward, but for its last linear layer at times.
        together = m.layer if checkpointing and m.layer is not None else f"module {place}"
        held[together] = held.get(together, 0) + sum(apart[i].bytes for i in m.weights if i in apart)
    most = max(held.values(), default=0)
    numbers = max(knobs["stage3_prefetch_bucket_size"], knobs["stage3_max_reuse_distance"])
    ahead = numbers * max((w.itemsize for w in apart.values()), default=0)
    return min(everything, most + ahead)


def gathered_bytes(shape: BaseShape, work: Work, ranks: int, settings: Mapping[str, Any] | None) -> int:
    """Bytes of weights that one rank receives from others in one pass over a micro-batch."""
    knobs = _knobs(settings)
    whole = _persistent(shape, knobs)
    first = first_layer(shape, work)
    # DeepSpeed does not release what its prefetch has already met again in the order of modules, so
    # this much stays whole from the end of the forward to the start of the backward.
    kept = max(knobs["stage3_prefetch_bucket_size"], knobs["stage3_max_reuse_distance"])
    parts = 0
    for module in reversed(shape.modules):
        times = 1
        if work.training:
            times += differentiated(module, first) + recomputed(module, work, first)
        own = [w for i in module.weights if i not in whole for w in [shape.weights[i]]]
        if times > 1 and kept > 0:
            kept -= sum(w.numel for w in own)
            times = 1
        parts += times * sum(-(-w.numel // ranks) * w.itemsize for w in own)
    return (ranks - 1) * parts


def _persistent(shape: BaseShape, knobs: Mapping[str, int]) -> set[int]:
    """Indices of the small weights that stay whole on every rank, picked as DeepSpeed does."""
    found, total = set(), 0
    for i, weight in enumerate(shape.weights):
        room = total + weight.numel <= knobs["stage3_model_persistence_threshold"]
        if room and weight.numel <= knobs["stage3_param_persistence_threshold"]:
            found.add(i)
            total += weight.numel
    return found


def _knobs(settings: Mapping[str, Any] | None) -> dict[str, int]:
    """The relevant settings of a `zero_optimization` section, with DeepSpeed's defaults."""
    if settings is None:
        settings = ds_settings(None, "full", torch.float32)["zero_optimization"]
    defaults = {
        "stage3_param_persistence_threshold": 100_000,
        "stage3_model_persistence_threshold": 1 << 62,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    }
    return {name: int(settings.get(name, value)) for name, value in defaults.items()}
