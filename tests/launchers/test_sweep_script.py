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

from salsa_dist.launch.command import main


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
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
    return file


@pytest.fixture(scope="module")
def shown(file: Path) -> str:
    folder = file.parent
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


def test_what_sbatch_refuses_is_one_line_and_what_it_takes_has_a_pickle_a_task(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(file.read_text(encoding="utf-8")) | {"sweep": str(tmp_path / "sweep")}
    own = tmp_path / "sweep.yaml"
    own.write_text(yaml.safe_dump(tree), encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sbatch = tmp_path / "sbatch"
    for answer, says in (
        ("echo 'no such partition' >&2; exit 1", "no such partition"),
        ("echo '--> Checking your quota… OK'; echo '17;tests'", ""),
    ):
        sbatch.write_text(f"#!/bin/sh\n{answer}\n")
        sbatch.chmod(0o755)
        status = main(["sweep", str(own), "--nodes", "8"])
        out, err = capsys.readouterr()
        refused = f"error: sbatch refused the sweep: {says}\n" if says else ""
        assert (status, err) == (2 if says else 0, refused)
        if says:  # it may have a job that trains nothing, such as the mean of seeds
            only = min(tmp_path.glob("sweep/jobs/*/job.json"))
            only.write_text(json.dumps({**json.loads(only.read_text()), "verbs": ["evaluate"]}))
    assert out.count("submitted job 17_") == 3
    pickles = tmp_path.glob("sweep/jobs/*/logs/*/*submitted.pkl")
    assert sorted(path.parent.name for path in pickles) == ["17_0", "17_1", "17_2"]
    assert len(list(tmp_path.glob("sweep/jobs/*/submit.sh"))) == 3
    notes = [json.loads(p.read_text()) for p in tmp_path.glob("sweep/jobs/*/logs/*/launch.json")]
    # `runs list` waits for the last step of those that train, to call them finished.
    assert sorted(note["command"] for note in notes) == ["evaluate", "train", "train"]
    # The same command once more, while nobody can say whether these jobs wait or run.
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'Socket timed out' >&2; exit 1\n")
    squeue.chmod(0o755)
    assert main(["sweep", str(own), "--nodes", "8"]) == 2
    out, err = capsys.readouterr()
    assert "Slurm does not answer, so job 17_" in err
    assert "submitted" not in out
    assert main(["sweep", str(own), "training.steps=3"]) == 2
    assert "write them under its overrides" in capsys.readouterr().err


def test_a_container_sees_the_sweep_and_all_its_shards(
    file: Path,
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where none of it is below the working folder. The code of its jobs is in the sweep's folder."""
    tree = yaml.safe_load(file.read_text(encoding="utf-8")) | {"sweep": str(tmp_path / "sweep")}
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    tree["grid"] |= {"corpus": {"own": str(shards)}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ["sweep", str(tmp_path / "sweep.yaml"), "--nodes", "8", "--container", "salsa.sif"]
    assert main([*words, "--dry-run"]) == 0
    (srun,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("srun ")]
    mounts = srun.split(" --bind ")[1].split()[0].split(",")
    for folder in (tmp_path / "sweep", shards):
        assert f"{folder}:{folder}" in mounts


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
