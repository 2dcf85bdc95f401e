"""Frozen weights partitioned over a group of ranks by DeepSpeed ZeRO-3.

    keep(weight)                 each rank keeps 1/k of every weight
    initialize(model, config)    hooks that gather a module's weights around its
                                 forward and backward, and release them after

`initialize` gets no optimizer: nothing of the base is trained. The model itself is called, not the
engine, and autograd reaches the steering vectors through the hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from salsa_dist.libraries import deepspeed as deepspeed_library
from salsa_dist.placement.device_events import Stopwatch
from salsa_dist.placement.freed_memory import give_back_at_once
from salsa_dist.placement.frozen_linear import FrozenLinear
from salsa_dist.placement.loading import Part, Say, fill
from salsa_dist.speech_llms.sources import Source


@dataclass
class StepTraffic:
    """The gathers of one step on this rank.

    Attributes:
        gathered_bytes: weights received from other ranks.
        peak_bytes: most bytes of the base held at once: own parts and gathered weights.
        gather_seconds: time in which modules waited for their weights, other ranks' lateness included;
            by the device's own clock.
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
        sources: Mapping[str, Source] | None,
        size: int,
        settings: dict[str, Any],
        device: torch.device,
        say: Say,
    ) -> None:
        deepspeed = deepspeed_library.start_deepspeed()
        give_back_at_once()
        self.model = model
        self.size = size
        self.device = device
        self.offloaded = _offload_device(settings) != "none"
        # Every rank makes every group, in the same order: torch requires it.
        world = dist.get_world_size()
        groups = [dist.new_group(list(range(i, i + size))) for i in range(0, world, size)]
        self.group = groups[dist.get_rank() // size]
        if _offload_device(settings) == "nvme":
            # A part must fit into one of the buffers that it is read into.
            largest = max(-(-p.numel() // size) for p in model.parameters())
            settings["zero_optimization"]["offload_param"].setdefault("buffer_size", largest)
        self._own_device = ExitStack()
        self._own_device.enter_context(deepspeed_library.on_own_device())
        keep = deepspeed_library.part_keeper(deepspeed, self.group, settings)
        if sources is None:
            for parameter in model.parameters():
                keep(parameter)
        else:
            fill(model, sources, Part(dist.get_rank() % size, size), keep, say)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
        # With no optimizer to build, the engine only installs the hooks; it is not called again.
        engine, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
        self._engine = engine
        self._offload = engine.optimizer
        FrozenLinear.enter()
        model.eval()

    @property
    def threshold_bytes(self) -> int:
        """Bytes of the small weights that stay whole on every rank (persistence threshold)."""
        return sum(
            deepspeed_library.true_shape(p).numel() * p.element_size()
            for p in self.model.parameters()
            if deepspeed_library.stays_whole(p)
        )

    def one_pass(self) -> AbstractContextManager[None]:
        """Calls of the model inside the block, and their backward, are one pass to the prefetch."""
        return deepspeed_library.one_pass(self._offload)

    def release(self) -> None:
        """Let go of what backward left gathered: modules whose input carries no gradient."""
        deepspeed_library.release_leftovers(self._offload)

    def close(self, failed: bool = False) -> None:
        """Free this rank's partitions and gathered weights. No rank of a group uses them any more.

        Args:
            failed: the ranks no longer go along, so nothing here may wait for them.
        """
        FrozenLinear.leave()
        self._own_device.close()
        deepspeed_library.forget(self._engine, self.model)
        del self._engine, self._offload
        if not failed:
            dist.destroy_process_group(self.group)

    def part_bytes(self) -> int:
        """Bytes of this rank's parts of the base, wherever they lie."""
        parts: list[Any] = [deepspeed_library.part_of(p) for p in self.model.parameters()]
        return sum(part.ds_numel * part.element_size() for part in parts)

    def resident_bytes(self) -> int:
        """Bytes of the base on this rank's device now: its partitions and gathered weights.

        Parts that are offloaded count as nothing, but for the small weights that stay on the device.
        """
        total = sum(b.numel() * b.element_size() for b in self.model.buffers())
        for p in self.model.parameters():
            part = deepspeed_library.part_of(p)
            there = not self.offloaded or deepspeed_library.stays_whole(p)
            total += (there * part.numel() + p.data.numel()) * p.element_size()
        return total

    @contextmanager
    def watched(self) -> Iterator[StepTraffic]:
        """Count the bytes that passes inside the block gather, and the most held at once."""
        coordinator = deepspeed_library.fetching(self._offload)
        fetch = coordinator.fetch_sub_module
        traffic = StepTraffic(peak_bytes=self.resident_bytes())
        waiting = Stopwatch(self.device)
        parameters = list(self.model.parameters())

        def watched_fetch(*args: Any, **kwargs: Any) -> None:
            absent = [p for p in parameters if not deepspeed_library.is_gathered(p)]
            with waiting.running():
                fetch(*args, **kwargs)
            for p in absent:
                if deepspeed_library.is_gathered(p):
                    part = deepspeed_library.part_of(p)
                    traffic.gathered_bytes += part.numel() * (self.size - 1) * p.element_size()
            traffic.peak_bytes = max(traffic.peak_bytes, self.resident_bytes())

        coordinator.fetch_sub_module = watched_fetch
        try:
            yield traffic
        finally:
            coordinator.fetch_sub_module = fetch
        traffic.gather_seconds = waiting.seconds()


def _offload_device(settings: dict[str, Any]) -> str:
    """Where a config keeps partitions between uses: none, cpu or nvme."""
    offload = settings["zero_optimization"].get("offload_param") or {}
    return str(offload.get("device", "none"))
