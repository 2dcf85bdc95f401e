"""What this process may use of the machine: cores and memory.

    cores()         OMP_NUM_THREADS, readers, workers
    memory()        all of it, in use or not
    free_memory()   without what is in use

The system tells what the whole machine has. A container or a job may use less: the files of its cgroup
(version 1 or 2) have its limits, and those of each cgroup around it count too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")  # lines such as 0::/user.slice or 4:memory:/slurm/job_7


def cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer by its cgroup's quota."""
    quotas = (_quota(folder) for folder in _cgroups("cpu"))
    return max(1, int(min([own_cores(), *quotas])))


def own_cores() -> int:
    """Cores that this process is bound to, whatever their quota."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def memory() -> float:
    """Bytes of memory that this process may use, together with what shares its limit."""
    limits = (_memory_limit(folder) for folder in _cgroups("memory"))
    return min([float(psutil.virtual_memory().total), *limits])


def free_memory() -> float:
    """Bytes of `memory()` that are not in use."""
    left = (_memory_limit(folder) - _used(folder) for folder in _cgroups("memory"))
    return max(0.0, min([float(psutil.virtual_memory().available), *left]))


def _cgroups(controller: str) -> Iterator[Path]:
    """The folder of this process's cgroup, and of those around it.

    Inside a container its path may be that outside, where only the topmost folder is there.
    """
    for line in _text(OWN_CGROUPS).splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            tops = {CGROUPS}  # version 2 has one folder for all controllers
        elif controller in names.split(","):
            tops = {CGROUPS / controller, CGROUPS / names}  # such as cpu,cpuacct
        else:
            continue
        for top in tops:
            own = top / path.lstrip("/")
            yield own
            yield from (folder for folder in own.parents if folder.is_relative_to(top))


def _memory_limit(folder: Path) -> float:
    # Version 1 writes a number near 2**63 where there is no limit.
    return min(_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))


def _used(folder: Path) -> float:
    """Bytes in use in a cgroup, without cached files: the kernel drops these where it needs memory."""
    found = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
    names = ("anon", "shmem") if "anon" in found else ("total_rss", "total_shmem")  # version 2, 1
    return sum(float(found.get(name, 0)) for name in names)


def _quota(folder: Path) -> float:
    """Cores' worth of time that a cgroup has."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if quota and quota != "max":
        return float(quota) / float(period)
    quota = _text(folder / "cpu.cfs_quota_us")
    if quota and int(quota) > 0:  # -1: as much as it wants
        return int(quota) / _number(folder / "cpu.cfs_period_us")
    return math.inf


def _number(file: Path) -> float:
    text = _text(file).strip()
    return float(text) if text and text != "max" else math.inf


def _text(file: Path) -> str:
    """The text of a file of the kernel; empty where it is not there."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
