"""Frozen weights cut over a group of ranks by DeepSpeed ZeRO-3. The only file that imports DeepSpeed.

    zero.Init(module, data_parallel_group=group)    each rank keeps 1/k of every weight
    initialize(model, config)                       hooks that gather a module's weights around its
                                                    forward and backward, and release them after

`initialize` gets no optimizer: nothing of the base is trained. The model itself is called, not the
engine, and autograd reaches the steering vectors through the hooks.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from salsa_dist.errors import UserError

_REPOSITORY = Path(__file__).parents[2]


@dataclass
class StepTraffic:
    """What one step gathered, seen on this rank.

    Attributes:
        gathered_bytes: weights received from other ranks.
        peak_bytes: most bytes of the base held at once: own parts and gathered weights.
        gather_seconds: time in which modules waited for their weights, other ranks' lateness included.
    """

    gathered_bytes: int = 0
    peak_bytes: int = 0
    gather_seconds: float = 0.0


def ds_settings(path: Path | None, kind: str | int, dtype: torch.dtype) -> dict[str, Any]:
    """The DeepSpeed config of a placement, with the precision of the base filled in.

    Args:
        path: the user's own file; None: the one in ds_configs/ that is named after the placement.
    """
    if path is None:
        path = _REPOSITORY / "ds_configs" / f"{kind if isinstance(kind, str) else 'group'}.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(
            f"DeepSpeed config {path} can't be read ({e.strerror}): set placement.ds_config"
        ) from None
    except ValueError as e:
        raise UserError(f"DeepSpeed config {path} is not valid JSON: {e}") from None
    if settings.get("zero_optimization", {}).get("stage") != 3:
        raise UserError(
            f"DeepSpeed config {path}: zero_optimization.stage must be 3 for sharded weights"
        )
    if "optimizer" in settings:
        raise UserError(f"DeepSpeed config {path}: drop 'optimizer', the base is frozen")
    # DeepSpeed insists on a batch size, which only its own training loop would use.
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["bf16"] = {"enabled": dtype == torch.bfloat16}
    settings["fp16"] = {"enabled": dtype == torch.float16}
    return settings


class ZeroShards:
    """A model whose weights are cut over a group of consecutive ranks.

    Args:
        model: frozen, whole on this rank; afterwards each weight is empty between uses.
        size: ranks of a group.
        settings: a DeepSpeed config.
    """

    def __init__(self, model: nn.Module, size: int, settings: dict[str, Any]) -> None:
        deepspeed = _import_deepspeed()
        self.model = model
        self.size = size
        # Every rank makes every group, in the same order: torch requires it.
        world = dist.get_world_size()
        groups = [dist.new_group(list(range(i, i + size))) for i in range(0, world, size)]
        self.group = groups[dist.get_rank() // size]
        dtype = next(model.parameters()).dtype
        deepspeed.zero.Init(
            module=model,
            data_parallel_group=self.group,
            config_dict_or_path=settings,
            dtype=dtype,
        )
        # With no optimizer to build, the engine only installs the hooks; it is not called again.
        engine, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
        self._offload = engine.optimizer
        model.eval()

    @property
    def threshold_bytes(self) -> int:
        """Bytes of the small weights that stay whole on every rank (persistence threshold)."""
        return sum(
            p.ds_numel * p.element_size()  # type: ignore[attr-defined]
            for p in self.model.parameters()
            if p.ds_persist  # type: ignore[attr-defined]
        )

    def release(self) -> None:
        """Let go of what backward left gathered: modules whose input carries no gradient."""
        self._offload.release_backward_leftovers()

    def resident_bytes(self) -> int:
        """Bytes of the base on this rank now: its parts, and what is gathered."""
        total = sum(b.numel() * b.element_size() for b in self.model.buffers())
        for p in self.model.parameters():
            part: Any = p.ds_tensor  # type: ignore[attr-defined]
            total += (part.numel() + p.data.numel()) * p.element_size()
        return total

    @contextmanager
    def watched(self) -> Iterator[StepTraffic]:
        """Count what the passes inside the block gather, and the most that is held at once."""
        coordinator = self._offload.get_param_coordinator()
        fetch = coordinator.fetch_sub_module
        traffic = StepTraffic(peak_bytes=self.resident_bytes())
        parameters = list(self.model.parameters())

        def watched_fetch(*args: Any, **kwargs: Any) -> None:
            absent = [p for p in parameters if p.ds_status.name == "NOT_AVAILABLE"]  # type: ignore[attr-defined]
            started = time.perf_counter()
            fetch(*args, **kwargs)
            traffic.gather_seconds += time.perf_counter() - started
            for p in absent:
                if p.ds_status.name != "NOT_AVAILABLE":  # type: ignore[attr-defined]
                    part: Any = p.ds_tensor  # type: ignore[attr-defined]
                    traffic.gathered_bytes += part.numel() * (self.size - 1) * p.element_size()
            traffic.peak_bytes = max(traffic.peak_bytes, self.resident_bytes())

        coordinator.fetch_sub_module = watched_fetch
        try:
            yield traffic
        finally:
            coordinator.fetch_sub_module = fetch


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed calls torch's collectives by names that torch is about to retire: not for our users.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    if not torch.cuda.is_available():
        # Else DeepSpeed compiles a shared-memory collective for minutes at its first start; gloo
        # is all that is needed here.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    return deepspeed
