"""Frozen weights cut over a group of ranks by DeepSpeed ZeRO-3. The only file that imports DeepSpeed.

    _Cut(group).keep(weight)     each rank keeps 1/k of every weight
    initialize(model, config)    hooks that gather a module's weights around its
                                 forward and backward, and release them after

`initialize` gets no optimizer: nothing of the base is trained. The model itself is called, not the
engine, and autograd reaches the steering vectors through the hooks.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from salsa_dist.placement.freed_memory import give_back_at_once
from salsa_dist.placement.loading import Part, Say, fill
from salsa_dist.speech_llms.weight_files import StoredTensor


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


class ZeroShards:
    """A model whose weights are cut over a group of consecutive ranks.

    Args:
        model: frozen, whole on this rank or on the meta device; afterwards each weight is empty between
            uses.
        sources: where the weights of a model on the meta device lie; see `SpeechLLM.sources`.
        size: ranks of a group.
        settings: a DeepSpeed config.
        device: where the model runs.
        say: gets the progress of reading.
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Mapping[str, StoredTensor] | None,
        size: int,
        settings: dict[str, Any],
        device: torch.device,
        say: Say,
    ) -> None:
        deepspeed = _import_deepspeed()
        give_back_at_once()
        self.model = model
        self.size = size
        self.offloaded = _offload_device(settings) != "none"
        # Every rank makes every group, in the same order: torch requires it.
        world = dist.get_world_size()
        groups = [dist.new_group(list(range(i, i + size))) for i in range(0, world, size)]
        self.group = groups[dist.get_rank() // size]
        if _offload_device(settings) == "nvme":
            # A part must fit into one of the buffers that it is read into.
            largest = max(-(-p.numel() // size) for p in model.parameters())
            settings["zero_optimization"]["offload_param"].setdefault("buffer_size", largest)
        keep = _cutter(deepspeed, self.group, settings)
        if sources is None:
            for parameter in model.parameters():
                keep(parameter)
        else:
            fill(model, sources, Part(dist.get_rank() % size, size), keep, say)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
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

    def part_bytes(self) -> int:
        """Bytes of this rank's parts of the base, wherever they lie."""
        parameters: list[Any] = list(self.model.parameters())
        return sum(p.ds_tensor.ds_numel * p.element_size() for p in parameters)

    def resident_bytes(self) -> int:
        """Bytes of the base on this rank's device now: its parts, and what is gathered.

        Parts that are offloaded count as nothing, but for the small weights that stay on the device.
        """
        total = sum(b.numel() * b.element_size() for b in self.model.buffers())
        for p in self.model.parameters():
            part: Any = p.ds_tensor  # type: ignore[attr-defined]
            there = not self.offloaded or p.ds_persist  # type: ignore[attr-defined]
            total += (there * part.numel() + p.data.numel()) * p.element_size()
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


def _offload_device(settings: dict[str, Any]) -> str:
    """Where a config keeps parts between uses: none, cpu or nvme."""
    offload = settings["zero_optimization"].get("offload_param") or {}
    return str(offload.get("device", "none"))


def lacks_libaio() -> bool:
    """Whether DeepSpeed can't build here what reads parts from files."""
    _choose_accelerator()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return not AsyncIOBuilder().is_compatible(verbose=False)


def _cutter(deepspeed: Any, group: Any, settings: dict[str, Any]) -> Callable[[nn.Parameter], None]:
    """What leaves a rank of `group` with its part of a parameter.

    `zero.Init` would send each whole parameter from the group's first rank to the others before it cuts
    it. Here every rank has read its own part, so nothing is sent.
    """

    class Cut(deepspeed.zero.Init):
        def _zero_init_param(self, param: Any) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()

        def keep(self, param: nn.Parameter) -> None:
            self._convert_to_zero_parameters([param])

    # The precision comes from the settings. An argument `dtype` is overruled where the device has no
    # fp16 (DeepSpeed 0.19.8, on the CPU): parts of an fp32 base would lie on disk in bf16.
    keep: Callable[[nn.Parameter], None] = Cut(
        module=nn.Module(), data_parallel_group=group, config_dict_or_path=settings
    ).keep
    return keep


def _choose_accelerator() -> None:
    """Before DeepSpeed's first import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _import_deepspeed() -> Any:
    _choose_accelerator()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even where no launcher was
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
