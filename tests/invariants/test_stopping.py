"""Invariant 3: a run stopped anywhere and resumed ends with the vectors of one that never stopped."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Process, free_port, start, world
from run_results import events, vectors
from safetensors.torch import load_file, save_file
from tiny import make_config

from salsa_dist import UserError, load_config, train

STEPS = 30


def settings(save_every_s: float = 0) -> dict[str, Any]:
    return {"steps": STEPS, "lr": 0.02, "save_every_s": save_every_s, "keep": 3}


def begin(config: Path, count: int, *overrides: str) -> list[Process]:
    port = free_port()
    own = [world(count, port, rank) if count > 1 else {} for rank in range(count)]
    words = ("-m", "salsa_dist", "train", config, *overrides)
    log = config.parent / "log"
    return [start(*words, env={**os.environ, **variables}, out=log) for variables in own]


def wait_for_step(run: Path, step: int) -> None:
    """Until the events show `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        events = run / "events.jsonl"
        if events.is_file():
            text = events.read_text().splitlines(keepends=True)
            lines = [json.loads(x) for x in text if x.endswith("\n")]
            if any(x["event"] == "step" and x["step"] >= step for x in lines):
                return
        time.sleep(0.005)
    raise AssertionError(f"step {step} never came")


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path
) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(load_config(make_config(folder, tiny_base, tiny_shards, training=settings(60))))
    return vectors(folder / "run")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2])
def test_stopped_and_resumed_is_bit_equal(
    uninterrupted: dict[str, torch.Tensor],
    how: signal.Signals,
    tmp_path: Path,
    tiny_base: Path,
    tiny_shards: Path,
) -> None:
    # After SIGKILL it goes on from the checkpoint of whatever step; the others save as they stop.
    save_every_s = 0 if how == signal.SIGKILL else 60
    config = make_config(tmp_path, tiny_base, tiny_shards, training=settings(save_every_s))
    (process,) = begin(config, 1)
    wait_for_step(tmp_path / "run", 4)
    process.send_signal(how)
    # A stopped run is no success: a shell's `&&`, or a job that waits for this one, must not go on.
    assert process.wait(timeout=60) == (-how if how == signal.SIGKILL else 128 + how)
    assert not (tmp_path / "run" / "adapters").exists()
    done = train(load_config(config))
    assert done.finished
    starts = [e["resumed_step"] for e in events(tmp_path / "run", "start")]
    assert len(starts) == 2
    assert 0 < starts[1] < STEPS
    found = vectors(tmp_path / "run")
    assert found.keys() == uninterrupted.keys()
    assert all(torch.equal(found[name], wanted) for name, wanted in uninterrupted.items())


def test_rank_0_says_that_all_were_stopped(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    """The signal reaches the other rank: it ends quietly, or srun would end rank 0 for it."""
    config = make_config(tmp_path, tiny_base, tiny_shards, training=settings(60))
    both = begin(config, 2)
    wait_for_step(tmp_path / "run", 4)
    both[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in both] == [128 + signal.SIGTERM, 0]
    assert list((tmp_path / "run" / "state").glob("step-*"))


def test_other_number_of_ranks_goes_on(
    uninterrupted: dict[str, torch.Tensor], tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Started on two sharded ranks, stopped, ended on one."""
    config = make_config(tmp_path, tiny_base, tiny_shards, training=settings())
    both = begin(config, 2, "placement.kind=full")
    wait_for_step(tmp_path / "run", 4)
    for process in both:
        process.kill()
        process.wait(timeout=60)
    assert train(load_config(config)).finished
    found = vectors(tmp_path / "run")
    for name, wanted in uninterrupted.items():
        assert (found[name] - wanted).norm() / wanted.norm() < 1e-5, name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(load_config(make_config(folder, tiny_base, tiny_shards, training=settings())))
    return folder / "run"


@pytest.fixture
def has_states(tmp_path: Path, tiny_base: Path, tiny_shards: Path, trained: Path) -> Path:
    """The config of a run that has states."""
    shutil.copytree(trained, tmp_path / "run")
    return make_config(tmp_path, tiny_base, tiny_shards, training=settings())


def test_torn_checkpoint_is_passed_over(
    uninterrupted: dict[str, torch.Tensor], tmp_path: Path, has_states: Path
) -> None:
    config = has_states
    newest = sorted((tmp_path / "run/state").glob("step-*"))
    assert len(newest) == 3
    raw = newest[-1].read_bytes()
    newest[-1].write_bytes(raw[: len(raw) // 2])
    flipped = bytearray(newest[-2].read_bytes())
    flipped[-5] ^= 1  # one bit of one number
    newest[-2].write_bytes(flipped)
    train(load_config(config))
    found = vectors(tmp_path / "run")
    assert all(torch.equal(found[name], wanted) for name, wanted in uninterrupted.items())
    assert [e["resumed_step"] for e in events(tmp_path / "run", "start")] == [0, STEPS - 2]


def test_state_of_an_unknown_schema_is_refused(tmp_path: Path, has_states: Path) -> None:
    newest = sorted((tmp_path / "run/state").glob("step-*"))[-1]
    save_file(load_file(newest), newest, {"state": json.dumps({"schema": "salsa-dist/state/99"})})
    with pytest.raises(UserError, match="salsa-dist/state/99"):
        train(load_config(has_states))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.lr=0.5", "settings"),
        ("data.clips_per_step=3", "settings"),
        ("adapters.0.name=other", "adapters"),
    ],
)
def test_state_of_another_run_is_refused(
    override: str, named: str, tmp_path: Path, has_states: Path
) -> None:
    before = sorted(p.name for p in (tmp_path / "run/state").iterdir())
    with pytest.raises(UserError, match=named):
        train(load_config(has_states, [override]))
    assert sorted(p.name for p in (tmp_path / "run/state").iterdir()) == before


def test_state_of_other_shards_is_refused(tmp_path: Path, has_states: Path) -> None:
    from tiny import make_shards

    other = make_shards(tmp_path / "other", train=25)
    with pytest.raises(UserError, match="other shards"):
        train(load_config(has_states, [f"data.shards={other}"]))
