"""The precision of a base's weights where the config names none, and a warning of a slow one."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from salsa_dist.log import log

_SLOW = 3  # times float32's time; where a CPU has half precision, it takes no longer than float32


def own_dtype(config: Any, device: torch.device) -> torch.dtype:
    """The precision that a checkpoint of `config` is used in where nobody names one."""
    if device.type == "cpu":
        return torch.float32  # half precision is slow on most
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]
    found = [own for part in parts if isinstance(own := getattr(part, "dtype", None), torch.dtype)]
    return found[0] if found else torch.float32


def warn_if_slow(precision: str | None, device: torch.device, instead: str) -> None:
    """Warn if half precision is slow on this CPU: on the first rank of each node.

    Such CPUs have no instructions for it, as those of x86 without AVX-512. The time is measured, since
    what PyTorch has kernels for changes with its releases.

    Args:
        precision: what the user asked for; None: nothing.
        instead: the setting that is faster, as the user writes it.
    """
    if device.type != "cpu" or precision not in ("bfloat16", "float16"):
        return
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    times = slowness(getattr(torch, precision))
    if times > _SLOW:
        log.warning(
            f"warning: on this CPU a matrix product takes {times:.0f} times as long in {precision} as "
            f"in float32. {instead} is faster here, and needs twice the memory"
        )


def slowness(precision: torch.dtype) -> float:
    """Time of a linear layer in `precision` on the CPU, in units of its time in float32."""
    return _shortest(precision) / _shortest(torch.float32)


def _shortest(precision: torch.dtype, tries: int = 3) -> float:
    """Seconds of one linear layer, 64 rows of 512 channels, in the fastest of several tries."""
    hidden, weight = (torch.ones(rows, 512, dtype=precision) for rows in (64, 512))
    seconds = []
    for _ in range(tries):
        begun = time.perf_counter()
        torch.nn.functional.linear(hidden, weight)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
