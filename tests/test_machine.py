"""Cores and memory of this process, by the files of its cgroup. Folders stand for these."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from salsa_dist import machine
from salsa_dist.placement.choose import this_job
from salsa_dist.placement.ranks import Ranks

GB = 10**9
NO_LIMIT_V1 = "9223372036854771712\n"


class Cgroups:
    """The files of /sys/fs/cgroup and the text of /proc/self/cgroup, on a machine of 64 GB, 48 of them
    free, and 16 cores."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.top, self.own = folder / "cgroup", folder / "own"
        found = SimpleNamespace(total=64 * GB, available=48 * GB)
        patch.setattr(machine, "CGROUPS", self.top)
        patch.setattr(machine, "OWN_CGROUPS", self.own)
        patch.setattr(machine.psutil, "virtual_memory", lambda: found)
        patch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def inside(self, text: str) -> None:
        self.own.write_text(text)

    def write(self, name: str, text: Any) -> None:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroups:
    return Cgroups(tmp_path, monkeypatch)


def test_without_cgroups_it_is_what_the_system_tells(cgroups: Cgroups) -> None:
    assert (machine.cores(), machine.memory(), machine.free_memory()) == (16, 64 * GB, 48 * GB)


def test_a_limit_of_its_own_cgroup_counts(cgroups: Cgroups) -> None:
    cgroups.inside("0::/slurm/job_7\n")
    cgroups.write("slurm/job_7/memory.max", 8 * GB)
    cgroups.write("slurm/job_7/cpu.max", "250000 100000")
    assert (machine.cores(), machine.memory(), machine.free_memory()) == (2, 8 * GB, 8 * GB)


def test_limits_of_the_cgroups_around_it_count_too(cgroups: Cgroups) -> None:
    cgroups.inside("0::/pods/pod_3/main\n")
    cgroups.write("pods/pod_3/main/memory.max", "max")
    cgroups.write("pods/pod_3/main/cpu.max", "max 100000")
    cgroups.write("pods/pod_3/memory.max", 16 * GB)
    cgroups.write("pods/cpu.max", "400000 100000")
    assert (machine.cores(), machine.memory()) == (4, 16 * GB)


def test_in_a_container_the_topmost_folder_is_its_own(cgroups: Cgroups) -> None:
    cgroups.inside("0::/docker/abc\n")  # its path outside
    cgroups.write("memory.max", 4 * GB)
    cgroups.write("cpu.max", "50000 100000")
    assert (machine.cores(), machine.memory()) == (1, 4 * GB)


def test_version_1(cgroups: Cgroups) -> None:
    cgroups.inside("9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    cgroups.write("memory/docker/abc/memory.limit_in_bytes", 8 * GB)
    cgroups.write("memory/memory.limit_in_bytes", NO_LIMIT_V1)
    cgroups.write("cpu,cpuacct/docker/abc/cpu.cfs_quota_us", 300000)
    cgroups.write("cpu,cpuacct/docker/abc/cpu.cfs_period_us", 100000)
    cgroups.write("cpu,cpuacct/cpu.cfs_quota_us", -1)
    cgroups.write("cpu,cpuacct/cpu.cfs_period_us", 100000)
    assert (machine.cores(), machine.memory()) == (3, 8 * GB)


def test_no_limit_is_none(cgroups: Cgroups) -> None:
    cgroups.inside("4:memory:/a\n1:cpu:/a\n0::/b\n")
    cgroups.write("memory/a/memory.limit_in_bytes", NO_LIMIT_V1)
    cgroups.write("cpu/a/cpu.cfs_quota_us", -1)
    cgroups.write("cpu/a/cpu.cfs_period_us", 100000)
    cgroups.write("b/memory.max", "max")
    cgroups.write("b/cpu.max", "max 100000")
    assert (machine.cores(), machine.memory(), machine.free_memory()) == (16, 64 * GB, 48 * GB)


@pytest.mark.parametrize(
    ("own", "limit", "stat"),
    [
        ("0::/a", "a/memory.max", "anon {}\nfile 5000000000\nshmem {}"),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes", "rss 7\ntotal_rss {}\ntotal_shmem {}"),
    ],
)
def test_what_is_in_use_under_a_limit_is_not_free_but_cached_files_are(
    cgroups: Cgroups, own: str, limit: str, stat: str
) -> None:
    cgroups.inside(own)
    cgroups.write(limit, 10 * GB)
    cgroups.write(str(Path(limit).parent / "memory.stat"), stat.format(2 * GB, 1 * GB))
    assert (machine.memory(), machine.free_memory()) == (10 * GB, 7 * GB)


def test_a_job_is_placed_by_what_its_cgroup_lets_it_have(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, op: None)
    cgroups.inside("0::/slurm/job_7\n")
    cgroups.write("slurm/job_7/memory.max", 12 * GB)
    on_cpu = this_job(Ranks(0, 4, 0, 4, torch.device("cpu")))
    assert (on_cpu.memory, on_cpu.host_memory) == (3 * GB, 12 * GB)
