"""Baselines and evaluation, like training: one job at a time in a run's folder, and no rank hangs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from ranks import Process, two_ranks
from tiny import make_config

from salsa_dist.cli import run_command
from salsa_dist.errors import UserError
from salsa_dist.run import lock as run_lock
from salsa_dist.run.watchdog import HUNG

JOBS = {
    "lora": ("train", ["method.kind=lora", "method.rank=2"]),
    "bias": ("train", ["method.kind=bias"]),
    "mean-difference": ("train", ["method.kind=mean-difference", "method.contrast=el"]),
    "evaluation": ("evaluate", ["method.kind=in-context", "method.pool=4", "method.examples=1"]),
}

STOPPED = """
import os, signal, sys
from salsa_dist.methods import mean_difference
from salsa_dist.cli import run_command
from salsa_dist.placement import decode
from salsa_dist.placement.frozen_base import FrozenBase

def stops_later(real):
    calls = []
    def call(*arguments, **named):
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*arguments, **named)
    return call

FrozenBase.logits = stops_later(FrozenBase.logits)
decode.answer = stops_later(decode.answer)
mean_difference.mean_activations = stops_later(mean_difference.mean_activations)
run_command(sys.argv[1], sys.argv[2], sys.argv[3:])
"""


class Hanging(NamedTuple):
    """A job of two ranks, and the folder that both write to."""

    folder: Path
    ranks: list[Process]


@pytest.mark.parametrize("job", JOBS)
def test_a_second_job_in_a_folder_is_refused_and_writes_nothing(
    job: str, tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "BEAT_S", 0.2)
    config = make_config(tmp_path, tiny_base, tiny_shards)
    command, overrides = JOBS[job]
    with run_lock.held(tmp_path / "run") as first:
        with pytest.raises(UserError, match="in use by another job"):
            run_command(command, str(config), overrides)
        first.check()
        there = {path.name for path in (tmp_path / "run").iterdir()}
        assert not {name for name in there if "lock" not in name}


@pytest.fixture(scope="module")
def hanging(
    tiny_base: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Hanging]]:
    """Jobs whose second rank is stopped, all at once: most of their time they wait."""
    with ExitStack() as stack:
        started = {}
        for job in ("evaluation", "bias", "mean-difference"):
            folder = tmp_path_factory.mktemp(job)
            config = make_config(folder, tiny_base, tiny_shards)
            command, overrides = JOBS[job]
            if job == "evaluation":
                overrides = ["method.kind=salsa"]
                run_command("train", str(config), [])
            words = (command, str(config), *overrides, "training.hang_after_s=30")
            started[job] = Hanging(folder, stack.enter_context(two_ranks(folder, STOPPED, *words)))
        yield started


@pytest.mark.timeout(1100)
@pytest.mark.parametrize("job", ["bias", "mean-difference", "evaluation"])
def test_a_rank_that_hangs_is_named_and_its_peer_ends(job: str, hanging: dict[str, Hanging]) -> None:
    folder, ranks = hanging[job]
    ended = ranks[0].wait(timeout=500)
    assert ended == HUNG, (folder / "log-0").read_text()
    text = json.loads((folder / "failure-0.json").read_text())["text"]
    assert f"rank 1 (process {ranks[1].pid} on " in text
    assert "no sign of life" in text
    assert "waiting: rank 0" in text
