"""What a sweep gives to sbatch: one array, each task a run with the script that it would have alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from launching import Desk, sbatch_lines


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    base = shutil.copytree(tiny_base, folder / "base")
    facts = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**facts, "dtype": "bfloat16"}))
    tree = {
        "sweep": str(folder / "sweep"),
        "config": {
            "base": {"name": str(base), "window_s": 2},
            "data": {"shards": str(tiny_shards), "clips_per_step": 2, "readers": 4},
        },
        "grid": {"language": ["bg"], "sites": ["encoder"], "lr": [0.01], "seed": [0, 1, 2]},
        "jobs": {"adapters": 1, "nodes": 2, "ranks_per_node": 2},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    options = ("--nodes", "8", "--array-parallelism", "2", "--gres", "gpu:2", "--dry-run")
    desk = Desk(folder)
    result = desk.slurm_py("sweep", str(file), *options)
    assert (result.status, result.err) == (0, "")
    assert not (folder / "sweep").exists(), "a dry run writes nothing"
    return result.out


def test_the_array_has_a_task_a_job_and_the_resources_of_one(shown: str) -> None:
    array, task = shown.split("# --- and for each of them task.sh:")
    asked = sbatch_lines(array)
    expected = {"array": "0-2%2", "nodes": "2", "ntasks-per-node": "2", "gres": "gpu:2"}
    assert {key: asked.get(key) for key in expected} == expected
    assert "requeue" in asked
    assert "srun" not in array, "that is each task's own"
    assert "%A_%a/%A_%a_%t_log.out" in task


def test_jobs_that_get_gpus_are_planned_for_gpus(shown: str) -> None:
    assert "GB, the base in bfloat16\n" in shown


def test_a_failed_task_asks_about_its_own_run_by_its_own_number(shown: str, tmp_path: Path) -> None:
    task = shown.split("# --- and for each of them task.sh:")[1]
    tail = task[task.index("status=$?") :]
    # Played: the ranks failed, and what is asked is printed.
    python = tail.split("|| ")[1].split()[0]
    played = tmp_path / "tail.sh"
    played.write_text("(exit 7)\n" + tail.replace(f"|| {python}", '|| echo "$SALSA_JOB"'))
    array = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(
        ["bash", str(played)], env={**os.environ, **array}, capture_output=True, text=True
    )
    assert done.returncode == 7
    job, *_, run, logs, status, tries = done.stdout.split()
    assert (job, status, tries) == ("17_2", "7", "3")
    assert logs == f"{run}/logs/17_2"
    alone = subprocess.run(
        ["bash", str(played)],
        env={**os.environ, "SLURM_JOB_ID": "17"},
        capture_output=True,
        text=True,
    )
    assert alone.stdout.split()[0] == "17"
