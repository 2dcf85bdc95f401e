"""Ranks on this machine (`--cluster local`): how they start, and how they and the launcher end.

The launched function is a stand-in, so nothing here trains: each test looks at the processes, the exit
status and what was printed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from launching import Desk

from salsa_dist import machine
from salsa_dist.launch import rank as launched


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_local_ranks_meet(desk: Desk) -> None:
    desk.environment["MASTER_PORT"] = "1"  # of whatever the launcher was started in
    result = desk.local("reduce", "--cpus-per-task", "3", "evaluate", "training.steps=7")
    assert (result.status, result.err) == (0, "")
    assert "sum 2 on rank 0\n" in result.out, "rank 0's output is followed"
    assert "rank 1" not in result.out
    ranks = [desk.seen(0), desk.seen(1)]
    for rank, seen in enumerate(ranks):
        command, config, overrides = seen["arguments"]
        assert (command, overrides) == ("evaluate", ["training.steps=7"])
        assert Path(config).read_bytes() == desk.config.read_bytes()
        assert (seen["RANK"], seen["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert seen["MASTER_ADDR"] == "127.0.0.1"
        assert seen["OMP_NUM_THREADS"] == "3"
        assert seen["CUDA_VISIBLE_DEVICES"] is None, "no GPU is hidden unless asked"
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"] != "1"
    (log,) = (desk.folder / "run" / "logs").glob("*/*_1_log.out")
    assert log.read_text() == "sum 2 on rank 1\n"


def test_a_peers_failure_can_end_a_local_rank_before_its_imports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []

    def imports(folder: str) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        raise SystemExit

    monkeypatch.setattr(launched, "_take_code_from", imports)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit bypasses it
    try:
        with pytest.raises(SystemExit):
            launched.RankCommand("train", "demo.yaml", code="somewhere")()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIG_DFL]


def test_setup_and_gpus_reach_local_ranks(desk: Desk) -> None:
    desk.environment["CUDA_VISIBLE_DEVICES"] = "4,5,6"
    setup = ("--setup", "export FROM_SETUP='a b'", "--setup", "false")
    result = desk.local("show", "--gpus-per-node", "2", *setup)
    assert result.status == 0
    for rank in (0, 1):
        seen = desk.seen(rank)
        assert seen["FROM_SETUP"] == "a b"
        assert seen["CUDA_VISIBLE_DEVICES"] == "4,5"
        assert seen["OMP_NUM_THREADS"] == str(max(1, machine.cores() // 2))


def test_the_ranks_of_a_container_share_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = SimpleNamespace(local_world_size=2, export=lambda **_: None)
    monkeypatch.setattr("submitit.helpers.TorchDistributedEnvironment", lambda: world)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    (tmp_path / "own").write_text("0::/")
    (tmp_path / "cpu.max").write_text("600000 100000")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.delenv("OMP_NUM_THREADS")
    launched.RankCommand("train", "demo.yaml")._set_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_user_error_in_the_ranks_is_one_line_and_status_2(desk: Desk) -> None:
    result = desk.local("user_error")
    assert result.status == 2
    assert result.err == "error: shards/ has no index.json: run the recipe first\n"
    assert "Traceback" not in result.out


def test_a_crash_ends_the_other_ranks(desk: Desk) -> None:
    start = time.monotonic()
    result = desk.local("crash", "--tries", "0")
    assert time.monotonic() - start < 30
    assert result.status == 1
    assert result.err.startswith("rank 1 failed:\nTraceback")
    assert "in crash\n" in result.err
    assert "RuntimeError: rank one broke\n" in result.err
    assert "submitit" not in result.err, "only the frames of the failing code"
    log = re.search(r"^log of rank 1: (.*)$", result.err, re.MULTILINE)
    assert log is not None
    assert "RuntimeError: rank one broke" in Path(log[1]).read_text()
    assert not desk.alive("started.0")


def test_a_killed_rank_is_named(desk: Desk) -> None:
    result = desk.local("killed", "--tries", "2")
    assert result.status == 1
    # Rank 0 may say first that it was asked to stop.
    own = [line for line in result.err.splitlines() if not line.startswith("submitit ")]
    assert own[0] == "rank 1 was ended by SIGKILL"
    assert own.count("rank 1 was ended by SIGKILL") == 2
    assert "they are started again" in result.err
    assert "2 attempts in a row ended at step 0 without a new checkpoint" in result.err


def test_a_rank_that_was_killed_once_is_started_again_with_its_peers(desk: Desk) -> None:
    result = desk.local("killed_once")
    assert result.status == 0, result.err
    assert "they are started again" in result.err
    assert [desk.seen(rank)["RANK"] for rank in (0, 1)] == ["0", "1"]
    assert not desk.alive("first.0"), "the peer of the first attempt is gone"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_launcher_lets_the_ranks_save(desk: Desk, signum: signal.Signals) -> None:
    launcher = desk.launch_stand_in("save_on_sigterm", "--cluster", "local", "--tasks-per-node", "2")
    for rank in (0, 1):
        desk.wait_for(f"started.{rank}")
    os.killpg(launcher.pid, signum)
    result = desk.finish(launcher)
    assert result.status == 128 + signum
    assert (desk.folder / "saved.0").exists()
    assert (desk.folder / "saved.1").exists()
    assert not desk.alive("started.0")
    assert not desk.alive("started.1")


def test_a_job_that_was_signalled_starts_again(desk: Desk) -> None:
    # Near its limit: submitit starts only a job with a checkpoint() again.
    result = desk.local("requeued", "--time", "5")
    assert result.status == 0, result.err
    assert "started again" in result.out
    assert [desk.seen(rank)["RANK"] for rank in (0, 1)] == ["0", "1"]
    assert not desk.alive("first.1"), "the rank of the first attempt is gone"


def test_the_time_limit_warns_and_then_ends(desk: Desk) -> None:
    code = """
import sys
from pathlib import Path
from salsa_dist.errors import UserError
from salsa_dist.launch.rank import RankCommand
from salsa_dist.launch.local_cluster import run_local
from salsa_dist.launch.options import Resources
job = RankCommand("train", "run.yaml", target="stand_in:never_stops", local_port=1)
resources = Resources.model_construct(time=4 / 60)  # minutes
try:
    run_local(job, Path("run"), resources)
except UserError as error:
    sys.exit(str(error))
"""
    result = desk.finish(desk.start(sys.executable, "-c", code))
    assert "--time" in result.err
    assert result.err.count("\n") == 1
    assert (desk.folder / "warned.0").exists()
    assert not desk.alive("started.0")


def test_debug_runs_in_the_launcher(desk: Desk) -> None:
    result = desk.finish(desk.launch_stand_in("reduce", "--cluster", "debug"))
    assert result.status == 0, result.err
    assert "sum 1 on rank 0\n" in result.out
    assert desk.seen(0)["WORLD_SIZE"] == "1"
