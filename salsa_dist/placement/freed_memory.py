"""Weights that are no longer needed must not stay with the process.

Those of one base must be gone before the next is loaded, as for another window of an evaluation.

Weights that are gathered and freed again a hundred times a step must not stay either.
glibc gives a freed block of its own mapping back to the system, and then serves all blocks up to that
size (32 MB at most) from its heap: there a gathered weight that is freed leaves a hole, which the next
one seldom fits. On four CPU ranks that share a base of 2 GB a step took 3.3 GB of each rank with such
holes, 1.3 without. A threshold that is set by hand stays where it is (mallopt(3), M_MMAP_THRESHOLD).
"""

from __future__ import annotations

import ctypes
import gc

import torch

# From <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_LARGE = 1 << 20  # bytes; each larger block is then two calls of the kernel, so not for small ones


def collect() -> None:
    """Free reference cycles, and cached device memory, before gigabytes are loaded."""
    gc.collect()  # a model and its hooks hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def give_back_at_once() -> None:
    """From now on, return freed host memory above 1 MiB to the system (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library, which does not move its threshold
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _LARGE)
