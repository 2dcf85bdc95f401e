"""A sweep as one job array: its tasks are runs of their own, and a killed one comes back alone."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from slurm_cluster import END_S, ROOT, Cluster, wait_until

from salsa_dist import SteeringVectors, load_config, train
from salsa_dist.sweeps.folder import JobFolder, job_folders

STEPS = 400


def sweep_file(folder: Path, base: Path, shards: Path) -> Path:
    tree = {
        "sweep": str(folder / "sweep"),
        "config": {
            "base": {"name": str(base), "window_s": 2},
            "data": {"shards": str(shards), "clips_per_step": 4, "readers": 2},
            "training": {"steps": STEPS, "save_every_s": 0, "hang_after_s": 60},
        },
        "grid": {"language": ["bg"], "sites": ["encoder"], "lr": [0.01], "seed": [0, 1]},
        "jobs": {"adapters": 1},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


class OnSlurm:
    """The sweep on the cluster."""

    def __init__(self, cluster: Cluster, file: Path) -> None:
        self.cluster, self.file = cluster, file

    def submit(self, *options: str) -> str:
        command = (sys.executable, ROOT / "launchers/slurm.py", "sweep", self.file)
        return self.run(*command, "--nodes", "2", *options)

    def run(self, *command: str | Path) -> str:
        done = self.cluster.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> str:
        done = self.cluster.run(sys.executable, "-m", "salsa_dist", "sweep", "status", self.file)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def jobs(self) -> dict[str, JobFolder]:
        """By the id of their task."""
        found = {}
        for job in job_folders(self.file.parent / "sweep"):
            for logs in (job.path / "logs").glob("*_*"):
                found[logs.name] = job
        return found

    def states(self) -> dict[str, str]:
        words = ("squeue", "--array", "--noheader", "--states=all", "--format=%i|%T", "--name")
        lines = self.cluster.slurm(*words, "salsa-sweep-sweep").split()
        return dict(line.split("|") for line in lines)

    def restarts(self, task: str) -> int:
        shown = self.cluster.slurm("scontrol", "show", "job", task)
        return int(shown.split("Restarts=")[1].split()[0])


@pytest.mark.timeout(1800)
def test_a_sweep_is_an_array_whose_killed_task_comes_back_alone(
    cluster: Cluster, tiny_base: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    sweep = OnSlurm(cluster, sweep_file(tmp_path, tiny_base, tiny_shards))
    own = ("--exclude", "n3,n4", "--setup", "export TOLD='to all'", "--sbatch", "comment=ours")
    said = sweep.submit("--array-parallelism", "1", *own)
    assert said.count("submitted job ") == 2
    jobs = sweep.jobs()
    first, last = sorted(jobs)
    assert [task.split("_")[1] for task in (first, last)] == ["0", "1"]
    assert sweep.states()[last] == "PENDING", "no more than one at a time"

    # While one waits the same command submits nothing twice, and the status says so.
    cluster.slurm("scontrol", "hold", last)
    assert "nothing to submit" in sweep.submit()
    shown = sweep.status()
    assert f"{jobs[last].path.name}: pending  job {last}" in shown, shown
    cluster.slurm("scontrol", "release", last)

    # The last task has the plain id of the whole array: to requeue that one is the hard case.
    wait_until(lambda: _steps(jobs[last]) > 5, f"steps of {last}", END_S)
    os.kill(_rank(cluster, last), signal.SIGKILL)
    wait_until(lambda: sweep.restarts(last) == 1, f"{last} is requeued", END_S)
    wait_until(lambda: set(sweep.states().values()) == {"COMPLETED"}, "all completed", END_S)
    assert [sweep.restarts(task) for task in (first, last)] == [0, 1]
    assert all(job.done for job in jobs.values())
    resumed = [e["resumed_step"] for e in jobs[last].events() if e["event"] == "start"]
    assert len(resumed) == 2
    assert resumed[1] > 0, "it began from step 0"
    _assert_as_uninterrupted(jobs[last], tmp_path / "uninterrupted")

    # Its submit.sh does one of them again, as it was asked for.
    shutil.rmtree(jobs[last].path / "adapters")
    script = jobs[last].path / "submit.sh"
    shown = sweep.run(script, "--dry-run")
    for line in ("#SBATCH --exclude=n3,n4", "#SBATCH --comment=ours", "export TOLD='to all'"):
        assert f"\n{line}\n" in shown, shown
    assert "--array" not in shown
    again = sweep.run(script).split("submitted job ")[1].split(":")[0]
    state = ("squeue", "--noheader", "--states=all", "--format=%T", "--job", again)
    wait_until(lambda: cluster.slurm(*state).strip() == "COMPLETED", "one is done again", END_S)
    assert jobs[last].events()[-1]["event"] == "end"
    assert jobs[last].done
    assert not (jobs[first].path / "logs" / again).exists()


def _steps(job: JobFolder) -> int:
    return sum(event["event"] == "step" for event in job.events())


def _rank(cluster: Cluster, task: str) -> int:
    """The process of a task's rank, as seen from here."""
    for node in ("n1", "n2"):
        for pid in cluster.processes(node, "submitit.core._submit"):
            found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = {key: value for key, _, value in (line.partition(b"=") for line in found)}
            array, number = task.encode().split(b"_")
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.get(b"SLURM_ARRAY_TASK_ID") == number and b"srun" not in command:
                assert words[b"SLURM_ARRAY_JOB_ID"] == array
                return pid
    raise AssertionError(f"no rank of {task}")


def _assert_as_uninterrupted(job: JobFolder, folder: Path) -> None:
    config: Any = load_config(job.config).model_copy(update={"run": folder})
    train(config)
    for name in job.adapters:
        ours, theirs = (
            SteeringVectors.load(at / "adapters" / name).vectors for at in (job.path, folder)
        )
        assert all(torch.equal(ours[site], theirs[site]) for site in theirs)
