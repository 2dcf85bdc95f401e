"""Faults inside a run: killed while it saves, a loss that explodes, no room for its events."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import make_config

from salsa_dist import UserError, load_config, train
from salsa_dist.training import state as states
from salsa_dist.training.events import Events

IDENTITY = states.RunIdentity(["bg"], "revision", "shards", "config")


def save_until_killed(folder: Path, step: int, done: int) -> None:
    tensors = {"vectors/encoder.0": torch.randn(1, 2_000_000)}
    while True:
        step += 1
        states.save(folder, states.TrainState(step, tensors), IDENTITY, keep=2)
        os.write(done, b".")


def test_killed_while_saving_at_20_moments_leaves_a_loadable_newest_state(tmp_path: Path) -> None:
    moments = random.Random(0)
    step = torn = 0
    for _ in range(20):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            save_until_killed(tmp_path, step, writing)
        os.close(writing)
        saved = os.read(reading, 1)  # at least one, so that there is progress to lose
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reading, 1000):
            saved += more
        os.close(reading)
        torn += any(tmp_path.glob("*.part"))
        for path in tmp_path.glob("step-*"):
            assert states._read(path), f"{path.name} is torn"
        newest = states.newest(tmp_path, IDENTITY)
        assert newest is not None
        assert newest.step >= step + len(saved), "a state that was saved is lost"
        step = newest.step
    assert torn, "no kill came in the middle of writing: this test shows nothing"


def test_exploding_loss_is_skipped_and_stops_the_run_with_the_clips_named(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    settings = {"steps": 9, "lr": 0.02, "save_every_s": 0, "max_loss": 0.01, "max_skipped": 2}
    config = make_config(tmp_path, tiny_base, tiny_shards, training=settings)
    with pytest.raises(UserError, match=r"training.max_loss, in 3 steps in a row.*clips bg/train-"):
        train(load_config(config))
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    skipped = [event for event in events if event["event"] == "skipped"]
    assert [event["adapters"] for event in skipped] == [["bg", "el"]] * 3
    newest = sorted((tmp_path / "run/state").iterdir())[-1]
    found = states._read(newest)
    assert found is not None
    tensors = found[1].tensors
    assert not any(tensors[name].any() for name in tensors), "a skipped step moved something"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_room_for_events_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"events.jsonl can't be written: No space left on device"):
        Events(tmp_path, True).write("step", step=1)
