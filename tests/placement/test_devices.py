"""Ranks compare their devices before any group is made; who asks for GPUs gets no CPU."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import Desk
from ranks import two_ranks

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import join, own_device, refuse_unlike

# Rank 1 finds a GPU, or so it says; a rank that came as far as a process group says so.
PRETENDS = """
import os, sys
import torch.distributed as dist
from salsa_dist.errors import UserError
from salsa_dist.placement import ranks
from salsa_dist.run.failure_file import write_failure

own = ranks.own_device
kinds = sys.argv[1].split(",")

def pretended(wanted, local_rank):
    found = {**own(wanted, local_rank), "kind": kinds[local_rank]}
    return {**found, "index": 0, "gpu": "GPU-" + sys.argv[2].split(",")[local_rank]}

ranks.own_device = pretended
dist.init_process_group = lambda *a, **k: sys.exit("a group was made")
try:
    with ranks.join():
        pass
except UserError as error:
    write_failure(int(os.environ["RANK"]), str(error), True)
"""


@pytest.mark.parametrize(
    ("kinds", "gpus", "said"),
    [
        ("cpu,cuda", "a,b", "1 of 2 ranks find no GPU, such as rank 0 on "),
        ("cuda,cuda", "a,a", "rank 0 and rank 1 on "),
    ],
)
def test_ranks_whose_devices_differ_all_stop_with_one_line(
    tmp_path: Path, kinds: str, gpus: str, said: str
) -> None:
    with two_ranks(tmp_path, PRETENDS, kinds, gpus) as both:
        statuses = [process.wait(timeout=200) for process in both]
    assert statuses == [0, 0], [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    told = [json.loads((tmp_path / f"failure-{rank}.json").read_text())["text"] for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith(said)
    assert "\n" not in told[0]


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    named = {"get_device_properties": lambda index: SimpleNamespace(uuid=f"GPU-{index}")}
    for name, function in named.items():
        monkeypatch.setattr(torch.cuda, name, function)


def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 4)
    assert [own_device("auto", i)["index"] for i in range(4)] == [0, 1, 2, 3]
    assert own_device("auto", 3)["gpu"] == "GPU-3"
    gpus(monkeypatch, 1)  # --gpus-per-task
    assert own_device("auto", 3)["index"] == 0
    assert not own_device("auto", 3)["problem"]


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    devices = [own_device("auto", i) for i in range(3)]
    with pytest.raises(UserError, match=r"rank 2 on .*it is number 2 of its node, which shows 2 GPUs"):
        refuse_unlike(devices)
    refuse_unlike(devices[:2])


@pytest.mark.parametrize("asked", ["device", *("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")])
def test_who_asked_for_gpus_gets_no_cpu(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if asked != "device":
        monkeypatch.setenv(asked, "8")
    wanted = "cuda" if asked == "device" else "auto"
    by = "device is cuda" if asked == "device" else f"{asked} is 8"
    with pytest.raises(UserError, match=f"rank 0 on .*: {by}, and torch finds no GPU"), join(0, wanted):
        pass
    refuse_unlike([own_device("cpu", 0)])


def test_a_run_on_the_cpu_hides_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found: dict[str, Any] = own_device("cpu", 1)
    assert (found["kind"], found["problem"]) == ("cpu", "")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_launch_with_gpus_stops_where_there_are_none(tmp_path: Path) -> None:
    """By the launcher's own command, with ranks that train."""
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    desk = Desk(tmp_path)
    ended = desk.slurm_py("--cluster", "local", "--gpus-per-node", "1", "--config", str(desk.config))
    assert ended.status == 2, ended.err
    assert "device is cuda, and torch finds no GPU" in ended.err
