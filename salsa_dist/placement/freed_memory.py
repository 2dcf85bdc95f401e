"""Weights that are gathered and freed again a hundred times a step must not stay with the process.

glibc gives a freed block of its own mapping back to the system, and then serves all blocks up to that
size (32 MB at most) from its heap: there a gathered weight that is freed leaves a hole, which the next
one seldom fits. On four CPU ranks with a base of 2 GB that came to 2.7 GB a rank, more than its tensors
held. A threshold that is set by hand stays where it is (mallopt(3), M_MMAP_THRESHOLD).
"""

from __future__ import annotations

import ctypes

# From <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_LARGE = 1 << 20  # bytes; each larger block is then two calls of the kernel, so not for small ones


def give_back_at_once() -> None:
    """From now on a freed block of host memory above 1 MiB leaves the process. glibc alone needs it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library, which does not move its threshold
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _LARGE)
