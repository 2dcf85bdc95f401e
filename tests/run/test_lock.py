"""Two jobs in one run folder: the second is refused while the first lives, and takes over when not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from salsa_dist.errors import UserError
from salsa_dist.run import lock as run_lock
from salsa_dist.run.folder import RunFolder


def rewrite(run: Path, **fields: Any) -> None:
    path = RunFolder(run).lock
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_S", 0.2)
    monkeypatch.setattr(run_lock, "SILENT_S", 1.0)
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.05)


def left_behind(run: Path) -> None:
    """A lock whose owner was killed."""
    code = f"""
import os, signal
from pathlib import Path
from salsa_dist.run import lock as run_lock
with run_lock.held(Path({str(run)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code])
    assert ended.returncode == -signal.SIGKILL
    assert RunFolder(run).lock.exists()


@pytest.mark.usefixtures("quick")
def test_the_second_is_refused_by_name_and_the_first_keeps_its_lock(tmp_path: Path) -> None:
    with run_lock.held(tmp_path) as first:
        named = rf"in use by another job \(process {os.getpid()} on "
        with pytest.raises(UserError, match=named), run_lock.held(tmp_path):
            pass
        first.check()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_dead_owner_on_this_host_loses_it_at_once(tmp_path: Path) -> None:
    left_behind(tmp_path)
    run_lock.SILENT_S = 1000
    with run_lock.held(tmp_path) as mine:
        mine.check()
    assert not RunFolder(tmp_path).lock.exists()


@pytest.mark.usefixtures("quick")
def test_an_owner_elsewhere_loses_it_by_silence_alone(tmp_path: Path) -> None:
    left_behind(tmp_path)
    rewrite(tmp_path, host="another")
    with run_lock.held(tmp_path) as mine:
        mine.check()


@pytest.mark.usefixtures("quick")
def test_a_living_owner_elsewhere_keeps_it(tmp_path: Path) -> None:
    with run_lock.held(tmp_path):
        rewrite(tmp_path, host="another")
        with pytest.raises(UserError, match="in use by"), run_lock.held(tmp_path):
            pass


@pytest.mark.usefixtures("quick")
def test_a_requeued_job_takes_its_own_but_a_twin_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock.held(tmp_path) as first:
        rewrite(tmp_path, host="another")
        with pytest.raises(UserError, match="job 7"), run_lock.held(tmp_path):
            pass
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with run_lock.held(tmp_path) as again:
            again.check()
            with pytest.raises(UserError, match="taken over"):
                first.check()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"), run_lock.held(tmp_path / "file" / "run"):
        pass


def test_a_folder_that_was_made_and_not_used_is_gone(tmp_path: Path) -> None:
    with run_lock.held(tmp_path / "new" / "run"):
        pass
    assert not list(tmp_path.iterdir())
