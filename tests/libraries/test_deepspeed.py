"""What salsa_dist/libraries/deepspeed.py assumes, seen on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from salsa_dist.libraries import deepspeed

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("deepspeed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # No compiler is there: what all of this needs has to do without.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, HERE.parents[:2])),
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"PATH": str(out), "CXX": "a-compiler-nobody-has"}
    done = subprocess.run(
        [*command, str(HERE / "deepspeed_ranks.py"), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_deepspeed_compiles_no_collective_on_a_cpu(ranks: list[dict[str, Any]]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    assert [rank["compiles"] for rank in ranks] == [False, False]


def test_a_rank_keeps_one_run_of_elements_and_sends_none(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["part"] == pytest.approx(rank["own"])
        assert rank["broadcast"] == []


def test_only_a_ranks_own_part_is_copied_to_the_device(ranks: list[dict[str, Any]]) -> None:
    """On a pretended GPU: of 7 elements, 4 to the first rank and 3 to the other."""
    for rank, own in zip(ranks, ([0, 1, 2, 3], [4, 5, 6]), strict=True):
        held, offloaded = rank["on_a_gpu"]
        assert held["part"][: len(own)] == offloaded["part"][: len(own)] == own
        assert [held["copied"], held["lies_on"]] == [4 * len(own), "pretend"]
        assert [offloaded["copied"], offloaded["lies_on"]] == [0, "cpu"]
        assert held["gathered_onto"] == offloaded["gathered_onto"] == "pretend"


def test_deepspeed_takes_the_device_that_a_variable_names(ranks: list[dict[str, Any]]) -> None:
    """Each rank sees one GPU, number 0; the launcher's own numbers are there again afterwards."""
    for number, rank in enumerate(ranks):
        for asked in rank["gpus"]:  # as it is set up, and in passes
            assert set(asked) - {"None"} == {"0"}
        assert rank["local_rank"] == str(number)


def test_a_partitioned_weight_knows_its_shape_and_its_part(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["shape"] == [8, 4]
        assert rank["empty"]
        assert len(rank["part"]) == 16


def test_small_weights_stay_whole(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stay_whole"] for rank in ranks] == [[False, True]] * 2


def test_a_fetch_gathers_and_is_seen(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["fetched"] for rank in ranks)


def test_what_backward_left_gathered_is_released(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["gathered_after_backward"] for rank in ranks), "nothing to release: no proof"
    assert not any(rank["gathered_after_release"] for rank in ranks)


def test_a_linear_layer_keeps_neither_weight_nor_input(ranks: list[dict[str, Any]]) -> None:
    """Only ReLU keeps its result, of (2, 8), and the product with `scale` a number."""
    for rank in ranks:
        assert rank["gradient"] == pytest.approx(rank["gradient_by_hand"], rel=1e-5)
        assert sorted(shape for shape in rank["kept"] if shape) == [[2, 8]]


def test_two_calls_in_one_pass_are_prefetched(ranks: list[dict[str, Any]]) -> None:
    """Each call by itself would break the record of the other."""
    for rank in ranks:
        assert rank["prefetched"][2:] == [1, 1]


def test_a_model_that_is_forgotten_goes(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["bytes_when_forgotten"] == 0
        assert not rank["waits_when_forgotten"]


def test_what_disk_offload_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: True)
    monkeypatch.setenv("CXX", "a-compiler-nobody-has")
    assert "lacks a C++ compiler (a-compiler-nobody-has)" in (deepspeed.why_no_async_io() or "")
    monkeypatch.setenv("CXX", sys.executable)  # something that is there
    assert deepspeed.why_no_async_io() is None
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    assert "libaio-dev" in (deepspeed.why_no_async_io() or "")
