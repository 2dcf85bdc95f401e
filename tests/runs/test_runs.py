"""`salsa-dist runs` tells how runs fare, why one failed, where one hangs, and what one cost.

Slurm is played by scripts that print what the real sacct and squeue print.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import Desk
from typer.testing import CliRunner

from salsa_dist.commands.runs import app
from salsa_dist.errors import UserError
from salsa_dist.runs import launches
from salsa_dist.runs.cost import cost

NOW = time.time()


class Cluster:
    """Runs in a folder, and a PATH where sacct, squeue and scancel are stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin")
        for name in ("sacct", "squeue", "scancel", "sbatch"):
            self.answers(name, "", 1)

    def answers(self, name: str, text: str, status: int = 0) -> None:
        (self.bin / name).write_text(
            f"#!/bin/sh\necho \"$@\" >> {self.bin}/{name}.asked\nprintf '%s' '{text}'\nexit {status}\n"
        )
        (self.bin / name).chmod(0o755)

    def asked(self, name: str) -> str:
        path = self.bin / f"{name}.asked"
        return path.read_text() if path.exists() else ""

    def job(self, run: str, job: str = "17", command: str = "train", nodes: int = 2) -> Path:
        logs = self.folder / "runs" / run / "logs" / job
        launches.note(logs, job, "slurm", command, nodes, 2)
        return logs

    def events(self, run: str, *events: tuple[str, float, dict[str, Any]]) -> Path:
        folder = self.folder / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            {"schema": "salsa-dist/events/1", "event": kind, "time": NOW + at, **fields}
            for kind, at, fields in events
        ]
        (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    def runs(self, *words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*words, "--root", str(self.folder / "runs")])
        if isinstance(result.exception, UserError):
            return 2, str(result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.output


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def start(ranks: int = 4, device: str = "cpu", **fields: Any) -> dict[str, Any]:
    return {"world_size": ranks, "environment": {"device": device}, **fields}


def step(number: int, seconds: float = 1.0) -> dict[str, Any]:
    return {"step": number, "seconds": seconds, "clips": 10, "adapters": {}}


def test_accounting_is_asked_first_and_the_queue_for_the_rest(cluster: Cluster) -> None:
    cluster.job("old", "17")
    cluster.job("new", "18")
    cluster.job("deep/er", "19")
    cluster.answers("sacct", "17|CANCELLED by 1000|n[1-2]|None\n")
    cluster.answers("squeue", "17|RUNNING|n1|None\n18|PENDING||(Resources)\n190|RUNNING|n1|None\n")
    status, out = cluster.runs("list")
    assert status == 0
    words = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert words == {"run": "state", "old": "cancelled", "new": "pending", "deep/er": "unknown"}
    assert "(Resources)" in out
    assert "-j 17,18,19" in cluster.asked("sacct")
    assert cluster.asked("sacct").count("\n") == 1, "one question for all runs"


def test_without_accounting_the_queue_tells_of_a_failed_job(cluster: Cluster) -> None:
    cluster.job("bad")
    cluster.answers("sacct", "Slurm accounting storage is disabled", 1)
    cluster.answers("squeue", "17|NODE_FAIL|n[1-2]|None\n")
    status, out = cluster.runs("status", "bad")
    assert status == 1
    assert "failed  job 17  (Slurm says NODE_FAIL, on n[1-2])" in out
    assert "--states=all" in cluster.asked("squeue")


def failure(logs: Path, rank: int, at: float, text: str) -> None:
    record = {"schema": 1, "rank": rank, "time": NOW + at, "user_error": False, "text": text}
    (logs / f"17_{rank}_failure.json").write_text(json.dumps(record))


def test_the_rank_that_failed_first_is_the_one_that_is_told(cluster: Cluster) -> None:
    logs = cluster.job("bad")
    cluster.answers("sacct", "17|FAILED|n[1-2]|None\n")
    failure(logs, 0, 5, "RuntimeError: Connection closed by peer")
    failure(logs, 3, 2, "Traceback …\nValueError: clip bg/17 holds no audio")
    status, out = cluster.runs("status", "bad")
    assert status == 1
    assert "rank 3 failed first:" in out
    assert "ValueError: clip bg/17 holds no audio" in out
    assert "Connection closed" not in out
    assert f"log     {logs}/17_3_log.err" in out


def test_a_killed_rank_counts_before_what_its_peers_say(cluster: Cluster) -> None:
    logs = cluster.job("bad")
    cluster.answers("sacct", "17|FAILED|n[1-2]|None\n")
    failure(logs, 0, 5, "RuntimeError: Connection closed by peer")
    (logs / "17_0_log.err").write_text(
        "loading\nsrun: error: n2: task 3: Killed\n"
        "srun: error: n1: tasks 0-1: Exited with exit code 1\n"
    )
    _, out = cluster.runs("status", "bad")
    assert "rank 3 failed first:\n  rank 3 on n2: Killed\n" in out
    assert f"log     {logs}/17_3_log.err" in out


def test_a_job_that_slurm_forgot_is_judged_by_its_files(cluster: Cluster) -> None:
    cluster.job("done")
    cluster.events("done", ("start", 5, start()), ("end", 9, {"step": 1}))
    failure(cluster.job("bad"), 1, 2, "out of memory")
    cluster.answers("squeue", "")
    _, out = cluster.runs("list")
    assert {x.split()[0]: x.split()[1] for x in out.splitlines()[1:]} == {
        "done": "finished",
        "bad": "failed",
    }


def test_while_slurm_does_not_answer_a_job_may_run_and_nothing_is_done_about_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.job("run")
    cluster.events("run", ("start", 5, start()), ("step", 9, step(0)))
    script = cluster.folder / "runs/run/submit.sh"
    script.write_text(f"#!/bin/sh\n: >{cluster.folder}/again\n")
    script.chmod(0o755)
    cluster.answers("squeue", "slurm_load_jobs error: Socket timed out on send/recv operation", 1)
    status, out = cluster.runs("status", "run")
    assert (status, "run: unknown  job 17  (Slurm does not answer)" in out) == (0, True)
    assert "again " not in out
    for command in ("resume", "cancel"):
        status, out = cluster.runs(command, "run")
        assert (status, "Slurm does not answer, so job 17 of run" in out) == (2, True)
    assert not (cluster.folder / "again").exists()
    # A machine without Slurm: the lock of the run is what counts.
    (cluster.bin / "squeue").unlink()
    monkeypatch.setenv("PATH", str(cluster.bin))
    assert cluster.runs("resume", "run")[0] == 0
    assert (cluster.folder / "again").exists()


def test_a_log_is_followed_while_slurm_does_not_answer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salsa_dist.commands.runs.POLL_S", 0.01)
    monkeypatch.setattr("salsa_dist.commands.runs.ASK_S", 0.0)
    logs = cluster.job("run")
    (logs / "17_0_log.out").write_text("step 1\n")
    asked = cluster.bin / "squeue.asked"
    over = f"[ $(grep -c . {asked}) -gt 2 ] && echo '17|FAILED|n1|None'"
    cluster.answers("squeue", "")
    (cluster.bin / "squeue").write_text(f"#!/bin/sh\necho asked >>{asked}\n{over}\n")
    status, out = cluster.runs("logs", "run", "--follow")
    assert (status, "step 1\n" in out) == (1, True)
    assert cluster.asked("squeue") == "asked\n" * 3


def test_a_job_that_was_requeued_and_is_held_waits(cluster: Cluster) -> None:
    cluster.job("held")
    cluster.answers("squeue", "17|SPECIAL_EXIT||job requeued in held state\n")
    assert "held: pending" in cluster.runs("status", "held")[1]


def test_completed_before_its_last_step_is_stopped(cluster: Cluster) -> None:
    cluster.job("half")
    cluster.events("half", ("start", 5, start()), ("step", 9, step(0)))
    cluster.answers("sacct", "17|COMPLETED|n[1-2]|None\n")
    assert "half: stopped" in cluster.runs("status", "half")[1]


def hung(cluster: Cluster, moved_s: float) -> str:
    cluster.job("stuck")
    launch = cluster.folder / "runs/stuck/logs/17/launch.json"
    launch.write_text(json.dumps({**json.loads(launch.read_text()), "time": NOW - 999}))
    cluster.answers("sacct", "17|RUNNING|n[1-2]|None\n")
    cluster.answers("squeue", "17|RUNNING|n[1-2]|None\n")
    run = cluster.events("stuck", ("start", -500, start()), ("step", -200, step(7)))
    (run / "ranks").mkdir()
    for rank, (since_s, phase) in enumerate(
        ((moved_s, "the sum over all ranks"), (150.0, "reading clips"))
    ):
        fields = {"schema": "salsa-dist/rank/1", "rank": rank, "host": f"n{rank}", "pid": 1, "step": 8}
        fields |= {"phase": phase, "since_s": since_s, "stack": ["loop.py:80 reduce_step"]}
        (run / "ranks" / f"rank-000{rank}.json").write_text(json.dumps(fields))
    silent = run / "ranks" / "rank-0001.json"
    os.utime(silent, (0, time.time() - 100))
    return cluster.runs("status", "stuck")[1]


def test_a_hung_run_tells_which_ranks_wait_and_where(cluster: Cluster) -> None:
    out = hung(cluster, 190)
    assert re.search(r"stuck: hung  job 17  \(no step for \d+ s, where one takes 1.0\)", out)
    assert re.search(r"rank 0 \(process 1 on n0\) in step 9, the sum over all ranks, for 19\d s\n", out)
    assert "loop.py:80 reduce_step" in out
    assert (
        "rank 1 (process 1 on n1) in step 9, reading clips, for 250 s, and gives no sign of life" in out
    )


def test_a_long_step_in_which_a_rank_moves_is_no_hang(cluster: Cluster) -> None:
    assert "stuck: running" in hung(cluster, 3)


def test_what_a_run_cost_counts_every_attempt(cluster: Cluster) -> None:
    run = cluster.events(
        "dear",
        ("start", 0, start(4, "NVIDIA H100", startup_s=100.0)),
        ("step", 400, step(0)),
        ("checkpoint", 500, {"step": 1, "bytes": 4000}),
        ("step", 800, step(1)),
        ("start", 5000, start(2, "NVIDIA H100", startup_s=100.0)),  # on half of the ranks
        ("step", 6000, step(1)),
        ("skipped", 6000, {"step": 1}),
        ("end", 6700, {"step": 2}),
    )
    spent = cost(run)
    assert spent is not None
    assert spent.hours == pytest.approx((900 + 1800) / 3600)
    assert spent.device_hours == pytest.approx((900 * 4 + 1800 * 2) / 3600)
    assert (spent.steps, spent.clips, spent.restarts, spent.skipped) == (3, 30, 1, 1)
    _, out = cluster.runs("status", "dear")
    assert "dear: finished" in out
    assert "2.00 GPU-hours (NVIDIA H100), 0:45:00 of wall clock; 3 steps, 30 clips" in out
    assert "1 checkpoints of 4.0 kB; 1 restarts" in out

    cores = cluster.events("slow", ("start", 0, start(2, threads=8)), ("end", 3600, {"step": 1}))
    spent = cost(cores)
    assert spent is not None
    assert spent.device_hours == pytest.approx(16)
    assert "16.00 CPU-hours" in spent.text


def test_half_a_line_at_the_end_of_the_events_hides_nothing(cluster: Cluster) -> None:
    run = cluster.events("torn", ("start", 0, start()), ("step", 10, step(3)))
    with open(run / "events.jsonl", "a") as file:
        file.write('{"schema": "salsa-dist/ev')
    spent = cost(run)
    assert spent is not None
    assert spent.last_step == 3


def test_cancel_asks_slurm_for_this_job_alone(cluster: Cluster) -> None:
    cluster.job("run", "17")
    cluster.answers("squeue", "17|RUNNING|n1|None\n")
    cluster.answers("scancel", "")
    assert cluster.runs("cancel", "run") == (0, "asked job 17 to end\n")
    assert cluster.asked("scancel") == "17\n"
    status, out = cluster.runs("resume", "run")
    assert (status, "cancel it first" in out) == (2, True)
    cluster.answers("squeue", "17|CANCELLED|n1|None\n")
    status, out = cluster.runs("cancel", "run")
    assert (status, "there is no job to cancel" in out) == (2, True)


def test_resume_runs_submit_sh(cluster: Cluster) -> None:
    cluster.job("run")
    cluster.answers("squeue", "17|FAILED|n1|None\n")
    script = cluster.folder / "runs/run/submit.sh"
    script.write_text(f"#!/bin/sh\ntouch {cluster.folder}/again\nexit 3\n")
    script.chmod(0o755)
    assert cluster.runs("resume", "run")[0] == 3
    assert (cluster.folder / "again").exists()


def test_a_wrong_name_names_the_nearest(cluster: Cluster) -> None:
    cluster.job("demo")
    assert "did you mean 'demo'?" in cluster.runs("status", "demoo")[1]
    status, out = cluster.runs("logs", "demo", "--rank", "4")
    assert (status, "4 ranks" in out) == (2, True)


# --- local runs, of the real launcher


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def runs(desk: Desk, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "salsa_dist", "runs", *words, "--root", str(desk.folder)]
    return subprocess.run(
        command, env=desk.environment, cwd=desk.folder, capture_output=True, text=True, timeout=120
    )


def test_a_local_run_is_followed_cancelled_and_told(desk: Desk) -> None:
    launcher = desk.launch_stand_in("save_on_sigterm", "--cluster", "local", "--tasks-per-node", "2")
    for rank in (0, 1):
        desk.wait_for(f"started.{rank}")
    status = runs(desk, "status", "run")
    assert "run: running  job local-" in status.stdout, status.stderr
    assert "to end" in runs(desk, "cancel", "run").stdout
    assert desk.finish(launcher).status == 143
    assert (desk.folder / "saved.0").exists()
    assert "run: cancelled" in runs(desk, "status", "run").stdout


def test_a_local_run_that_failed_tells_the_first_error(desk: Desk) -> None:
    assert desk.local("crash").status == 1
    status = runs(desk, "status", "run")
    assert status.returncode == 1
    assert "rank 1 failed first:\n" in status.stdout
    assert "RuntimeError: rank one broke\n" in status.stdout
    log = runs(desk, "logs", "run", "--rank", "1")
    assert "RuntimeError: rank one broke" in log.stderr


def test_a_launcher_that_was_killed_is_no_running_job(cluster: Cluster) -> None:
    logs = cluster.folder / "runs/lost/logs/local-1"
    launches.note(logs, "local-1", "local", "train", 1, 1)
    record = json.loads((logs / "launch.json").read_text())
    assert record["host"] == socket.gethostname()
    assert "lost: running" in cluster.runs("status", "lost")[1]
    # Its number now belongs to a process that is younger than the launch.
    (logs / "launch.json").write_text(json.dumps({**record, "time": 1000.0}))
    status, out = cluster.runs("status", "lost")
    assert (status, "its launcher was killed" in out) == (1, True)
