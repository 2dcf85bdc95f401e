"""A failed job is started again while it makes progress, and not for a user's mistake."""

import json
from pathlib import Path

import pytest

from salsa_dist import requeue
from salsa_dist.requeue import main, verdict


def checkpoint(run: Path, step: int) -> None:
    (run / "state").mkdir(parents=True, exist_ok=True)
    (run / "state" / f"step-{step:08d}.safetensors").write_text("")


def test_tries_without_progress_are_limited_and_progress_starts_the_count_anew(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    assert verdict(tmp_path, logs, 137, 2)[0]
    checkpoint(tmp_path, 5)
    assert verdict(tmp_path, logs, 137, 2)[0]
    again, why = verdict(tmp_path, logs, 137, 2)
    assert not again
    assert "2 attempts in a row ended at step 5 without a new checkpoint" in why
    checkpoint(tmp_path, 6)
    assert verdict(tmp_path, logs, 137, 2)[0]
    assert not verdict(tmp_path, logs, 137, 2)[0]
    for name in (".srt.settings.json", "talks/a.srt"):  # of a transcription: a new result
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert verdict(tmp_path, logs, 137, 2)[0]
    (logs / "launch.json").write_text("")
    assert not verdict(tmp_path, logs, 137, 2)[0], "logs are no results"


def test_a_users_mistake_is_not_tried_again(tmp_path: Path) -> None:
    record = {"schema": 1, "rank": 1, "time": 0.0, "user_error": True, "text": "no such shard"}
    (tmp_path / "7_1_failure.json").write_text(json.dumps(record))
    again, why = verdict(tmp_path, tmp_path, 2, 3)
    assert not again
    assert "no such shard" in why


@pytest.mark.parametrize(
    ("shown", "own", "requeued"),
    [
        ("JobId=7 JobState=RUNNING Requeue=1 Restarts=2 BatchFlag=1", "2", True),
        ("JobId=7 JobState=RUNNING Requeue=1 Restarts=0 BatchFlag=1", "", True),
        ("JobId=7 JobState=RUNNING Requeue=1 Restarts=3 BatchFlag=1", "2", False),
        ("JobId=7 JobState=PENDING Requeue=1 Restarts=3 BatchFlag=1", "2", False),
        ("JobId=7 JobState=CANCELLED Requeue=1 Restarts=2 BatchFlag=1", "2", False),
    ],
)
def test_only_the_start_that_slurm_still_runs_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, own: str, requeued: bool
) -> None:
    scontrol = tmp_path / "scontrol"
    asked = tmp_path / "asked"
    scontrol.write_text(f'#!/bin/sh\n[ "$1" = show ] && echo "{shown}" || echo "$@" >{asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SALSA_JOB", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", own)
    assert main([str(tmp_path), str(tmp_path), "137", "3"]) == 0
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 7\n"


AWAY = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
RUNS = 'echo "JobId=7 JobState=RUNNING Restarts=0"'
STARTED_AGAIN = 'echo "JobId=7 JobState=PENDING Restarts=1"'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for an `scontrol` that gives one answer after the other; `asked` has the questions."""
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$1" >>asked\neval "$(sed -n "$(grep -c . asked)p" answers)"\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SALSA_JOB", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(requeue, "PAUSE_S", 0.01)
    return tmp_path


def asked(slurm: Path, *answers: str) -> str:
    (slurm / "answers").write_text("\n".join(answers) + "\n")
    (slurm / "asked").unlink(missing_ok=True)
    main([str(slurm), str(slurm), "137", "3"])
    return " ".join((slurm / "asked").read_text().split())


def test_a_controller_that_is_away_is_asked_until_it_answers(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(slurm, AWAY, AWAY, RUNS, "exit 0") == "show show show requeue"
    said = capsys.readouterr().err
    assert said.count("Slurm does not answer (Unable to contact slurm controller") == 1
    assert "it is asked again for 15 minutes" in said


def test_a_requeue_that_got_no_answer_is_asked_for_again_unless_it_was_done(slurm: Path) -> None:
    assert asked(slurm, RUNS, AWAY, AWAY, RUNS, "exit 0") == "show requeue show show requeue"
    assert asked(slurm, RUNS, AWAY, STARTED_AGAIN) == "show requeue show"


def test_a_refusal_of_a_controller_that_answers_is_told_and_ends_the_job(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses = "echo 'Job has been disabled for requeue' >&2; exit 1"
    assert asked(slurm, RUNS, refuses, RUNS, refuses, RUNS).startswith("show requeue show requeue")
    assert "Slurm does not requeue job 7 (Job has been disabled for requeue)" in capsys.readouterr().err


def test_nobody_waits_for_a_job_that_slurm_does_not_know_nor_for_ever(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(slurm, "echo 'Invalid job id specified' >&2; exit 1") == "show"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(requeue, "ANSWER_S", 0.0)
    assert asked(slurm, AWAY, AWAY) == "show"
    assert "not started again, since Slurm does not answer" in capsys.readouterr().err
