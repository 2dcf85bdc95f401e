"""The precision of a base's weights where the config names none, and a warning of a slow one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from salsa_dist.log import log

_SLOW = 3  # times float32's time; where a CPU has half precision, it takes no longer than float32
_BFLOAT16_FROM = (8, 0)  # CUDA's compute capability; before, it is emulated


def own_dtype(config: Any, device: torch.device) -> torch.dtype:
    """The precision that a checkpoint of `config` is used in where nobody names one."""
    if device.type == "cpu":
        return torch.float32  # half precision is slow on most
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]
    found = [own for part in parts if isinstance(own := getattr(part, "dtype", None), torch.dtype)]
    return found[0] if found else torch.float32


@cache
def warn_if_slow(precision: str | None, device: torch.device, instead: str) -> None:
    """Warn if half precision is slow on this device: once per process, on the first rank of a node.

    CPUs without instructions for it, as those of x86 without AVX-512, are measured: what PyTorch has
    kernels for changes with its releases.

    Args:
        precision: that of the base; None: the device's own.
        instead: the setting that may be faster, as the user writes it.
    """
    if precision not in ("bfloat16", "float16") or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    told = None
    if device.type == "cpu" and (times := slowness(getattr(torch, precision))) > _SLOW:
        told = (
            f"on this CPU, products of matrices take up to {times:.0f} times as long in {precision} as "
            f"in float32: {instead} is"
        )
    elif device.type == "cuda" and precision == "bfloat16" and _emulates_bfloat16(device):
        name = torch.cuda.get_device_name(device)
        told = f"{name} has no instructions for bfloat16 and emulates it: {instead} may be"
    if told is not None:
        log.warning(f"warning: {told} faster here, and needs twice the memory")


def _emulates_bfloat16(gpu: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(gpu) < _BFLOAT16_FROM


def slowness(precision: torch.dtype) -> float:
    """Time of a linear layer's products in `precision` on the CPU, in units of float32's; the larger
    of two, forward and for the gradient of the activations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy CPU, several wait for each other
    try:
        products: list[Callable[[Tensor, Tensor], Tensor]] = [torch.nn.functional.linear, torch.matmul]
        return max(_shortest(p, precision) / _shortest(p, torch.float32) for p in products)
    finally:
        torch.set_num_threads(threads)


def _shortest(product: Callable[[Tensor, Tensor], Tensor], precision: torch.dtype) -> float:
    """Seconds of a product with 64 rows of 512 channels, in the fastest of several tries."""
    hidden, weight = (torch.ones(rows, 512, dtype=precision) for rows in (64, 512))
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        product(hidden, weight)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
