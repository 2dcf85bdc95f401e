"""Jobs on this machine: side by side as many as asked for, failures told in the end."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from salsa_dist.errors import UserError
from salsa_dist.sweeps import local_jobs

MEET = """
import pathlib, sys, time
own, other = map(pathlib.Path, sys.argv[1:])
own.mkdir()
until = time.monotonic() + 60
while not other.exists() and time.monotonic() < until:
    time.sleep(0.01)
sys.exit(0 if other.exists() else 3)
"""


class Job:
    """What `run_jobs` needs of a job: it is done once its folder is there."""

    def __init__(self, path: Path) -> None:
        self.path, self.config, self.adapters = path, path / "config.yaml", [""]

    def to_do(self) -> list[str]:
        return [] if self.path.exists() else ["train"]


def test_two_jobs_at_once_meet_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = [Job(tmp_path / name) for name in "ab"]

    def command(verb: str, job: Any, ranks: int) -> list[str]:
        (other,) = [j for j in jobs if j is not job]
        return [sys.executable, "-c", MEET, str(job.path), str(other.path)]

    monkeypatch.setattr(local_jobs, "_command", command)
    assert local_jobs.run_jobs(jobs, 1, at_once=2) == 0


SHOW = """
import os, pathlib, sys, time
own = pathlib.Path(sys.argv[1])
own.mkdir()
(own / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
time.sleep(0.5)
"""


def run_on_gpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, ranks: int, at_once: int
) -> list[str]:
    """What each of four jobs sees on a machine of so many GPUs."""
    jobs: list[Any] = [Job(folder / name) for name in "abcd"]

    def command(verb: str, job: Any, ranks: int) -> list[str]:
        return [sys.executable, "-c", SHOW, str(job.path)]

    monkeypatch.setattr(local_jobs, "_command", command)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert local_jobs.run_jobs(jobs, ranks, at_once=at_once) == 0
    return [(job.path / "gpus").read_text() for job in jobs]


def test_jobs_side_by_side_have_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = run_on_gpus(tmp_path, monkeypatch, 4, ranks=2, at_once=2)
    assert set(seen[:2]) == {"0,1", "2,3"}
    assert set(seen) == {"0,1", "2,3"}


def test_jobs_keep_to_the_gpus_that_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert set(run_on_gpus(tmp_path, monkeypatch, 2, ranks=1, at_once=2)) == {"GPU-a", "GPU-b"}


def test_jobs_side_by_side_without_a_gpu_each_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"jobs.at_once is 3, of 1 ranks each, and .* shows 2 GPUs"):
        run_on_gpus(tmp_path, monkeypatch, 2, ranks=1, at_once=3)
    assert set(run_on_gpus(tmp_path, monkeypatch, 0, ranks=1, at_once=3)) == {"all"}


@pytest.mark.parametrize(
    ("ranks", "at_once", "users", "found"),
    [
        (1, 1, None, ""),
        (2, 1, None, "6"),
        (1, 2, None, "6"),
        (2, 2, None, "3"),
        (8, 2, None, "1"),
        (2, 2, "5", "5"),
    ],
)
def test_the_ranks_of_all_jobs_share_the_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    at_once: int,
    users: str | None,
    found: str,
) -> None:
    own = tmp_path / "a"
    code = f"import os; os.mkdir({str(own)!r} + os.environ.get('OMP_NUM_THREADS', ''))"
    monkeypatch.setattr(local_jobs, "_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(local_jobs, "cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if users:
        monkeypatch.setenv("OMP_NUM_THREADS", users)
    job: Any = Job(own)
    job.to_do = lambda: [] if any(tmp_path.iterdir()) else ["train"]
    assert local_jobs.run_jobs([job], ranks, at_once) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"a{found}"]


def test_a_job_that_fails_is_told_when_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs: list[Any] = [Job(tmp_path / name) for name in "abc"]

    def command(verb: str, job: Any, ranks: int) -> list[str]:
        fails = job.path.name == "a"
        return [
            sys.executable,
            "-c",
            "raise SystemExit(1)" if fails else f"import os; os.mkdir({str(job.path)!r})",
        ]

    monkeypatch.setattr(local_jobs, "_command", command)
    with pytest.raises(UserError, match=r"1 of 3 jobs failed.*a/config\.yaml"):
        local_jobs.run_jobs(jobs, 1)
    assert capsys.readouterr().err == "a: train exited with 1\n"
    assert (tmp_path / "b").exists()
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL, mostly for lack of memory"),
        ("import os; os.kill(os.getpid(), 15)", "was ended by SIGTERM"),
        ("pass", "exited with 0, and is not done"),
    ],
)
def test_the_end_of_a_job_that_says_nothing_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    told: str,
) -> None:
    monkeypatch.setattr(local_jobs, "_command", lambda *_: [sys.executable, "-c", code])
    job: Any = Job(tmp_path / "a")
    with pytest.raises(UserError, match="1 of 1 jobs failed"):
        local_jobs.run_jobs([job], 1)
    assert capsys.readouterr().err == f"a: train {told}\n"
