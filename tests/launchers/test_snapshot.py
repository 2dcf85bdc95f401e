"""A job runs the code and the config of its launch, and can be launched again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from email import message_from_string
from importlib.metadata import requires
from pathlib import Path

import pytest
from launching import LAUNCHERS, ROOT, Desk, submit


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def snapshots(desk: Desk) -> list[Path]:
    return sorted((desk.folder / "run" / "snapshots").glob("*"))


def test_a_job_runs_the_code_and_the_config_of_its_launch(desk: Desk) -> None:
    config = desk.config.read_bytes()
    result, logs = submit(desk, "show")
    assert result.status == 0, result.err
    # While it waits in the queue: the source of the working folder and the config change.
    (desk.folder / "salsa_dist").mkdir()
    (desk.folder / "salsa_dist/__init__.py").write_text("raise SystemExit('not the snapshot')")
    desk.config.write_text("run: elsewhere")
    job = desk.finish(desk.start("bash", str(logs / "4242_submission.sh")))
    assert job.status == 0, (logs / "4242_0_log.err").read_text()
    (snapshot,) = snapshots(desk)
    for rank in range(4):
        assert Path(desk.seen(rank)["code"]) == snapshot / "salsa_dist"
        assert Path(desk.seen(rank)["arguments"][1]).read_bytes() == config


def test_a_failed_job_asks_to_be_started_again_by_the_code_of_its_launch(desk: Desk) -> None:
    """Whatever the source is by then, and if the user's own setup ends a script at its first error."""
    submit(desk, "show", "--setup", "set -eu")
    (desk.folder / "salsa_dist").mkdir()
    (desk.folder / "salsa_dist/__init__.py").write_text("raise SystemExit('not the snapshot')")
    shows = 'echo "JobState=RUNNING Restarts=0"'
    for name, text in (
        ("srun", "exit 9"),
        ("scontrol", f'[ "$1" = show ] && {shows} || echo "$@" >asked'),
    ):
        (desk.folder / name).write_text(f"#!/bin/sh\ncd {desk.folder}\n{text}\n")
        (desk.folder / name).chmod(0o755)
    desk.environment["SLURM_JOB_ID"] = "4242"
    logs = desk.folder / "run" / "logs" / "4242"
    job = desk.finish(desk.start("bash", str(logs / "4242_submission.sh")))
    assert job.status == 9, job.err
    assert "the ranks ended with status 9 after step 0: they are started again" in job.err
    assert (desk.folder / "asked").read_text() == "requeue 4242\n"


def test_the_snapshot_holds_what_a_run_needs(desk: Desk) -> None:
    submit(desk, "show")
    (snapshot,) = snapshots(desk)
    for folder in ("salsa_dist", "launchers", "ds_configs"):
        source = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
        kept = {p.relative_to(snapshot) for p in (snapshot / folder).rglob("*")}
        assert {p for p in source if "__pycache__" not in p.parts} <= kept
    facts = json.loads((snapshot / "snapshot.json").read_text())
    assert facts["schema"] == "salsa-dist/snapshot/1"
    (kept_metadata,) = snapshot.glob("salsa_dist-*.dist-info/METADATA")
    ranges = message_from_string(kept_metadata.read_text(encoding="utf-8")).get_all("Requires-Dist")
    assert ranges == requires("salsa-dist")


def test_submit_sh_launches_the_same_again(desk: Desk) -> None:
    first, _ = submit(desk, "show")
    assert first.status == 0, first.err
    (snapshot,) = snapshots(desk)
    script = desk.folder / "run" / "submit.sh"
    text = script.read_text()
    assert f"{snapshot}/launchers/slurm.py" in text
    assert "--nodes 2 --tasks-per-node 2 training.steps=7" in text
    desk.config.unlink()
    again = desk.finish(desk.start(str(script), "--dry-run", "--nodes", "3"))
    assert (again.status, again.err) == (0, "")
    assert "#SBATCH --nodes=3\n" in again.out
    again = desk.finish(desk.start(str(script)))
    assert again.status == 0, again.err
    assert snapshots(desk) == [snapshot], "the same content makes no second one"
    assert f"--config {snapshot}/config.yaml" in script.read_text()


def test_old_snapshots_go_and_used_ones_stay(desk: Desk) -> None:
    submit(desk, "show")
    (used,) = snapshots(desk)
    old, young = used.parent / "aaaa", used.parent / "bbbb"
    for folder, days in ((old, 3), (young, 1), (used, 9)):
        if folder != used:
            shutil.copytree(used, folder)
        os.utime(folder, (0, time.time() - days * 86400))
    result = desk.finish(desk.launch_stand_in("show", "--nodes", "2", "--keep-snapshots", "2"))
    assert result.status == 0, result.err
    used = next(f for f in snapshots(desk) if f.name == used.name)
    assert snapshots(desk) == sorted([used, young])


def test_a_started_job_renews_its_snapshot(desk: Desk) -> None:
    _, logs = submit(desk, "show")
    (snapshot,) = snapshots(desk)
    os.utime(snapshot, (0, 0))
    assert desk.finish(desk.start("bash", str(logs / "4242_submission.sh"))).status == 0
    assert snapshot.stat().st_mtime > time.time() - 3600


def test_a_local_run_has_a_snapshot_too(desk: Desk) -> None:
    assert desk.local("show").status == 0
    (snapshot,) = snapshots(desk)
    assert Path(desk.seen(1)["code"]) == snapshot / "salsa_dist"
    assert str(LAUNCHERS) not in (desk.folder / "run" / "submit.sh").read_text()
    assert sys.executable in (desk.folder / "run" / "submit.sh").read_text()


def test_the_snapshot_of_a_launch_is_kept_whatever_the_days(desk: Desk) -> None:
    submit(desk, "show")
    (old,) = snapshots(desk)
    desk.config.write_text(desk.config.read_text() + "device: cpu\n")
    result, _ = submit(desk, "show", "--keep-snapshots", "0")
    assert result.status == 0, result.err
    (new,) = snapshots(desk)
    assert new != old
    assert str(new) in (desk.folder / "run" / "submit.sh").read_text()
