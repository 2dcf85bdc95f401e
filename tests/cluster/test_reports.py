"""`salsa-dist runs` on a real Slurm tells of a failed job and of a hung one, with and without sacct."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import START_S, Cluster, Run, wait_until
from tiny import make_config

ACCOUNTING = ("mariadbd", "slurmdbd")
# Nothing but the test ends them.
TRAINING = {"steps": 100_000, "lr": 0.02, "save_every_s": 600, "hang_after_s": 600}


@pytest.fixture
def with_sacct(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster of its own; where `cluster` is left out this is too."""
    path = os.environ["PATH"] + ":/usr/sbin"
    if missing := [p for p in ACCOUNTING if shutil.which(p, path=path) is None]:
        why = f"no {', '.join(missing)} here (tests/cluster/install.sh, as root on Debian)"
        if os.environ.get("SALSA_REQUIRE_CLUSTER") == "1":
            pytest.fail(f"skipped: {why}")
        pytest.skip(f"skipped: {why}")
    folder = Path(tempfile.mkdtemp(prefix="salsa-"))
    try:
        with Cluster(folder / "slurm", accounting=True) as accounted:
            yield accounted
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Reports:
    """What `salsa-dist runs status` says on a cluster, where only the programs of `path` are found."""

    def __init__(self, cluster: Cluster, path: str) -> None:
        self.cluster, self.path = cluster, path

    def __call__(self, run: Run) -> str:
        command = ("env", f"PATH={self.path}", sys.executable, "-m", "salsa_dist", "runs", "status")
        done = self.cluster.run(*command, run.inside)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.stdout


def started(cluster: Cluster, folder: Path, base: Path, shards: Path, *options: str) -> Run:
    folder.mkdir()
    config = make_config(folder, base, shards, training=TRAINING)
    place = ("--nodes", "2", "--exclude", "n3,n4", "--tries", "0")
    return Run(cluster, config, *place, *options).launch()


def check(cluster: Cluster, report: Reports, folder: Path, base: Path, shards: Path) -> None:
    failed = started(cluster, folder / "failed", base, shards)
    hung = started(cluster, folder / "hung", base, shards)
    for run in (failed, hung):
        run.wait_for_step(5)
    (stopped,) = hung.tasks("n2")
    os.kill(stopped, signal.SIGSTOP)
    (killed,) = failed.tasks("n2")
    os.kill(killed, signal.SIGKILL)
    failed.wait_for_end("FAILED")
    took = wait_until(lambda: ": failed  job" in report(failed), "it says failed", START_S)
    said = report(failed)
    assert f"failed  job {failed.job}  (Slurm says FAILED" in said, said
    assert "rank 1 failed first:\n  rank 1 on n2: Killed" in said, said
    assert f"log     {failed.inside}/logs/{failed.job}/{failed.job}_1_log.err" in said, said
    hung_after = wait_until(lambda: ": hung  job" in report(hung), "it says hung", 3 * START_S)
    print(f"failed was said after {took:.1f} s, hung {hung_after:.1f} s later")
    said = report(hung)
    assert "rank 0 (process " in said, said
    assert "on n2) in step " in said, said
    hung.cluster.slurm("scancel", "--signal=KILL", hung.job)


@pytest.mark.timeout(900)
def test_without_accounting(
    cluster: Cluster, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    everything = os.environ["PATH"]
    check(cluster, Reports(cluster, everything), tmp_path, tiny_base, tiny_shards)


@pytest.mark.timeout(900)
def test_by_sacct_alone(
    with_sacct: Cluster, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sacct").symlink_to(str(shutil.which("sacct")))
    report = Reports(with_sacct, str(tmp_path / "bin"))
    check(with_sacct, report, tmp_path, tiny_base, tiny_shards)
