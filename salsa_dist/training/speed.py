"""How fast a job's steps are, and how much memory they take: for the `step` event.

    speed = Speed(job)                   once a job
    speed.of(counts, labels, seconds)    {"audio_per_second": 412.0, "tokens_per_second": 9_800.0,
                                          "peak_memory": 61_000_000_000, "mfu": 0.41}

Model FLOPs utilisation is the share of the devices' peak that the model's own FLOPs come to (PaLM,
arXiv 2204.02311, appendix B):

    mfu = FLOPs of the step / (seconds * ranks * peak FLOP/s of a device, dense bf16)

The FLOPs are the planner's (`planner/step_cost.py`), of the step's own windows, tokens and labels:
forward, and gradients of activations from the first steered layer on; no weight learns. What activation
checkpointing computes again is left out, and so is padding, so both lower the share.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from salsa_dist.planner.devices import device_of
from salsa_dist.planner.plan_of_run import work_of
from salsa_dist.planner.step_cost import flops
from salsa_dist.planner.step_work import tokens_of
from salsa_dist.training.step_counts import StepCounts

if TYPE_CHECKING:
    from salsa_dist.training.job import Job


class Speed:
    """Speed and memory of the steps of `job`."""

    def __init__(self, job: Job) -> None:
        session, training = job.session, job.config.training
        self._device, self._world = session.ranks.device, session.ranks.world_size
        self._shape = session.placed.shape
        self._peak: float | None = None
        if self._device.type == "cuda":
            known = device_of(torch.cuda.get_device_name(self._device))
            self._peak = known.flops if known else None
        # Where a part of the forward pass is left out or shared, the planner's FLOPs are others.
        strides = {job.config.thinning} if job.strides is None else set(job.strides.by_row)
        whole = strides <= {1, "auto"} and training.prefix_cache == "off"
        shared = job.batches is None or job.batches.share
        self._work = None
        if job.config.method.steers and whole and not shared:
            self._work = replace(work_of(job.config, self._shape), checkpointing=False)

    def of(self, counts: StepCounts, labels: float, seconds: float) -> dict[str, float | int | None]:
        """The numbers of one step.

        Args:
            counts: of all ranks.
            labels: of all ranks.
            seconds: that the step took.
        """
        found: dict[str, float | int | None] = {"peak_memory": peak_memory(self._device)}
        if seconds > 0:
            found["audio_per_second"] = round(counts.seconds / seconds, 3)
            found["tokens_per_second"] = round(counts.tokens / seconds, 1) if counts.tokens else None
        made = self.flops(counts, labels)
        if made is not None and self._peak is not None and seconds > 0:
            found["mfu"] = round(made / (seconds * self._world * self._peak), 4)
        return found

    def flops(self, counts: StepCounts, labels: float) -> float | None:
        """FLOPs of one step over all ranks; None where parts of the model are left out or shared."""
        if self._work is None or not counts.windows:
            return None
        windows = counts.windows
        work = replace(self._work, clips=round(windows), clip_s=counts.seconds / windows)
        each = {"llm": counts.tokens / windows, "labels": labels / windows}
        return flops(self._shape, work, {**tokens_of(self._shape, work), **each})


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: on a GPU of tensors, else of host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
