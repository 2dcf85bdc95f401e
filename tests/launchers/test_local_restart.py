"""A real training whose rank is killed goes on by itself, from the last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import LAUNCHERS, Desk
from run_results import vectors
from tiny import make_config

from salsa_dist import load_config, train

STEPS = 60


def events(run: Path, event: str) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["event"] == event]


@pytest.mark.timeout(600)
def test_a_killed_rank_goes_on_from_the_last_checkpoint(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    training = {"steps": STEPS, "lr": 0.02, "save_every_s": 0}
    config = make_config(tmp_path, tiny_base, tiny_shards, training=training)
    desk, run = Desk(tmp_path), tmp_path / "run"
    options = ("--cluster", "local", "--tasks-per-node", "2", "--cpus-per-task", "1")
    launcher = desk.start(sys.executable, f"{LAUNCHERS}/slurm.py", "--config", str(config), *options)
    try:
        until = time.monotonic() + 240
        while len(events(run, "step")) < 5:
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(json.loads((run / "ranks/rank-0001.json").read_text())["pid"], signal.SIGKILL)
    finally:
        result = desk.finish(launcher, 240)
    assert result.status == 0, result.err
    assert "rank 1 was ended by SIGKILL" in result.err
    resumed = [event["resumed_step"] for event in events(run, "start")]
    assert len(resumed) == 2
    assert 0 < resumed[1] < STEPS
    train(load_config(config, [f"run={tmp_path / 'uninterrupted'}"]))
    wanted = vectors(tmp_path / "uninterrupted")
    for name, vector in vectors(run).items():
        assert (vector - wanted[name]).norm() / wanted[name].norm() < 1e-5, name
