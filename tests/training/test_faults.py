"""Faults inside a run: killed while it saves, a loss that is NaN or explodes, another base, a folder
that can't be written. The last good checkpoint stays whole."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from run_results import events, vectors
from tiny import make_base, make_config

from salsa_dist import UserError, load_config, train
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.run.events import Events
from salsa_dist.training import state as states

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
        while not any(name.endswith(".part") for name in os.listdir(tmp_path)):
            pass
        time.sleep(moments.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reading, 1000):
            saved += more
        os.close(reading)
        torn += any(tmp_path.glob("*.part"))
        others = {path.suffix for path in tmp_path.iterdir()} - {".part", ".safetensors"}
        assert not others, "something else was left behind"
        for path in tmp_path.glob("step-*.safetensors"):
            assert states._read(path), f"{path.name} is torn"
        newest = states.newest(tmp_path, IDENTITY)
        assert newest is not None
        assert newest.step >= step + len(saved), "a state that was saved is lost"
        step = newest.step
    assert torn, "no kill came in the middle of writing: this test shows nothing"
    (tmp_path / "step-00000000.part").write_text("of a process that was killed")
    states.save(tmp_path, states.TrainState(step + 1, {"a": torch.ones(1)}), IDENTITY, keep=2)
    assert not any(tmp_path.glob("*.part"))


def test_exploding_loss_is_skipped_and_stops_the_run_with_the_clips_named(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    settings = {"steps": 9, "lr": 0.02, "save_every_s": 0, "max_loss": 0.01, "max_skipped": 2}
    config = make_config(tmp_path, tiny_base, tiny_shards, training=settings)
    with pytest.raises(UserError, match=r"training.max_loss, in 3 steps in a row.*clips bg/train-"):
        train(load_config(config))
    skipped = events(tmp_path / "run", "skipped")
    assert [event["adapters"] for event in skipped] == [["bg", "el"]] * 3
    newest = sorted((tmp_path / "run/state").iterdir())[-1]
    found = states._read(newest)
    assert found is not None
    tensors = found[1].tensors
    assert not any(tensors[name].any() for name in tensors), "a skipped step moved something"


def test_float16_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    with pytest.raises(UserError, match=r"base.dtype float16 has no loss scaling here"):
        train(load_config(config, ["base.dtype=float16"]))
    assert not (tmp_path / "run").exists()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_nan_gradients_are_skipped_and_stop_the_run_which_goes_on_without_them(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 4 on every logit is NaN; what was learned before is kept, and nothing is spoilt."""
    settings = {"steps": 9, "lr": 0.02, "save_every_s": 0, "max_skipped": 2, "keep": 9}
    config = make_config(tmp_path, tiny_base, tiny_shards, training=settings)
    run = tmp_path / "run"
    plain = FrozenBase.logits

    def spoilt(self: FrozenBase, batch: object) -> torch.Tensor:
        steps = events(run, "step")
        return plain(self, batch) * (float("nan") if steps and steps[-1]["step"] >= 3 else 1.0)

    with monkeypatch.context() as patched:
        patched.setattr(FrozenBase, "logits", spoilt)
        with pytest.raises(
            UserError, match=r"no finite gradient.*in 3 steps in a row, up to step 7 \(clips bg/train-"
        ):
            train(load_config(config))
    # People count steps from 1, files from 0.
    assert [event["step"] for event in events(run, "skipped")] == [4, 5, 6]
    saved = [states._read(path) for path in sorted((run / "state").iterdir())]
    good, newest = saved[-3], saved[-1]
    assert good is not None
    assert newest is not None
    assert (good[1].step, newest[1].step) == (4, 6)
    for name, wanted in good[1].tensors.items():
        assert torch.equal(newest[1].tensors[name], wanted), f"a skipped step moved {name}"
    assert train(load_config(config)).finished
    assert all(vector.isfinite().all() for vector in vectors(run).values())


def test_a_base_that_changed_under_the_run_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    settings = {"steps": 6, "lr": 0.02, "save_every_s": 0}
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = make_config(tmp_path, base, tiny_shards, training=settings)
    train(load_config(config))
    run = tmp_path / "run"
    wanted, state, written = vectors(run), run / "state", (run / "events.jsonl").read_bytes()
    sorted(state.iterdir())[-1].unlink()  # it was stopped before its last step
    before = files(state)
    shutil.rmtree(base)
    make_base(base, seed=1)
    with pytest.raises(UserError, match="was made with other weights of the base: name another run"):
        train(load_config(config))
    assert files(state) == before
    assert (run / "events.jsonl").read_bytes() == written
    assert not (run / "lock.json").exists()
    shutil.rmtree(base)
    shutil.copytree(tiny_base, base)
    shutil.rmtree(run / "adapters")
    assert train(load_config(config)).finished
    assert events(run, "start")[-1]["resumed_step"] == 5
    assert all(torch.equal(vector, wanted[name]) for name, vector in vectors(run).items())


READ_ONLY = """
import subprocess, sys
from pathlib import Path
import torch
from salsa_dist import UserError, load_config, train
from salsa_dist.training import state as states

folder, config = Path(sys.argv[1]), sys.argv[2]
state = folder / "run" / "state"
mine = states.RunIdentity(["bg"], "revision", "shards", "config")
tensors = {"vectors/encoder.0": torch.ones(1, 8)}
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
states.save(state, states.TrainState(1, tensors), mine, keep=2)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
for do in (
    lambda: states.save(state, states.TrainState(2, tensors), mine, keep=2),
    lambda: train(load_config(config)),
):
    try:
        do()
    except UserError as e:
        print("one line:", e)
print("newest:", states.newest(state, mine).step, *(p.name for p in state.iterdir()))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only folder")
def test_a_read_only_run_folder_is_one_line_and_the_checkpoint_stays(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    config = make_config(tmp_path, tiny_base, tiny_shards, run=str(folder / "run"))
    words = ["unshare", "--mount", sys.executable, "-c", READ_ONLY, str(folder), str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    if done.stderr.startswith("unshare: "):
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    saving, starting, newest = done.stdout.strip().splitlines()[-3:]
    assert "step-00000002.safetensors can't be written: " in saving
    assert "the one before it is whole" in saving
    assert f"run folder {folder / 'run'} can't be written" in starting
    assert newest == "newest: 1 step-00000001.safetensors"


SMALL_SHARED_MEMORY = """
import subprocess, sys
from salsa_dist import UserError, load_config, train

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", "/dev/shm"], check=True)
try:
    train(load_config(sys.argv[1]))
except UserError as e:
    print("one line:", e)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small /dev/shm")
def test_a_full_dev_shm_is_one_line(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    tree = yaml.safe_load(config.read_text())
    tree["data"] |= {"workers": 2, "clips_per_step": 12}
    config.write_text(yaml.safe_dump(tree))
    words = ["unshare", "--mount", sys.executable, "-c", SMALL_SHARED_MEMORY, str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    if done.stderr.startswith("unshare: "):
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("one line: /dev/shm is full, ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_room_for_events_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"events.jsonl can't be written: No space left on device"):
        Events(tmp_path, True).write("step", step=1)
