"""A run's curves reach TensorBoard, and W&B when asked; the console reads well in a log."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_config

from salsa_dist import UserError, load_config, train
from salsa_dist.config.fingerprint import digest
from salsa_dist.run.console import Console
from salsa_dist.run.settled import settled
from salsa_dist.run.trackers import Trackers

WANDB = """
import json, pathlib
OUT = pathlib.Path(__file__).with_name("wandb.jsonl")
class Run:
    def log(self, values, step=None, **more):
        if BROKEN: raise ConnectionError("no way out")
        with OUT.open("a") as file: file.write(json.dumps([step, values]) + "\\n")
    def finish(self): OUT.with_name("finished").touch()
class Config:
    def update(self, values, **more): OUT.with_name("config.json").write_text(json.dumps(values))
config = Config()
BROKEN = False
def init(project, name, **more):
    OUT.with_name("init").write_text(f"{project}/{name}")
    return Run()
"""


def curves(run: Path) -> dict[str, dict[int, float]]:
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {tag: {e.step: e.value for e in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_training_logs_losses_rates_and_norms(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards))
    train(config)
    logged = curves(tmp_path / "run")
    assert set(logged) == {
        f"{what}/{name}" for what in ("loss", "lr", "grad_norm") for name in ("bg", "el")
    }
    assert set(logged["loss/bg"]) == set(range(6))
    assert logged["grad_norm/el"][0] > 0
    with_them = settled(config, "cpu")
    without = with_them.model_copy(update={"trackers": []})
    assert digest(without, "vectors") == digest(with_them, "vectors"), "it goes on with other trackers"


def test_a_run_that_goes_on_redraws_what_it_does_again(tmp_path: Path) -> None:
    for steps, loss in ((range(4), 1.0), (range(2, 3), 3.0)):
        time.sleep(steps[0] > 0)  # TensorBoard orders files by their names, which have the second
        trackers = Trackers(["tensorboard"], tmp_path, {}, steps[0])
        for step in steps:
            trackers.step(step, {"bg": {"loss": loss, "lr": 0.1, "grad_norm": None}})
        trackers.close()
    logged = curves(tmp_path)
    assert logged["loss/bg"] == {0: 1.0, 1: 1.0, 2: 3.0}
    assert "grad_norm/bg" not in logged, "what is no number is not logged"


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    return tmp_path


def test_wandb_gets_the_steps_and_the_settings(wandb: Path) -> None:
    trackers = Trackers(["wandb"], wandb / "night", {"base": "tiny"}, 0)
    trackers.step(3, {"bg": {"loss": 1.5, "lr": 0.1, "grad_norm": 2.0}})
    trackers.close()
    assert (wandb / "init").read_text() == "salsa-dist/night"
    assert (wandb / "config.json").read_text() == '{"base": "tiny"}'
    assert (wandb / "wandb.jsonl").read_text() == (
        '[3, {"loss/bg": 1.5, "lr/bg": 0.1, "grad_norm/bg": 2.0}]\n'
    )
    assert (wandb / "finished").exists()


def test_a_tracker_that_breaks_ends_itself_and_not_the_run(wandb: Path) -> None:
    trackers = Trackers(["wandb", "tensorboard"], wandb / "night", {}, 0)
    sys.modules["wandb"].BROKEN = True  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="wandb is skipped: no way out"):
        trackers.step(0, {"bg": {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0}})
    trackers.step(1, {"bg": {"loss": 2.0, "lr": 0.1, "grad_norm": 1.0}})
    trackers.close()
    assert curves(wandb / "night")["loss/bg"] == {0: 1.0, 1: 2.0}


def test_a_missing_package_is_named_before_anything_is_loaded(
    tmp_path: Path, tiny_shards: Path
) -> None:
    config = load_config(make_config(tmp_path, Path("nowhere"), tiny_shards), ["trackers=[trackio]"])
    with pytest.raises(UserError, match="pip install trackio"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_log_gets_a_line_a_period_and_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    console = Console(True, lambda: now[0])
    made = []
    for step in range(1, 20_001):  # a second each: five and a half hours
        now[0] += 1
        console.progress(step, 20_000, lambda: made.append(1) or "loss bg 1.0", 1, 20_000 - step)  # type: ignore[func-returns-value]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 5/20000  loss bg 1.0  5:33:15 left"
    assert lines[-1] == "step 20000/20000  loss bg 1.0"
    assert 350 < len(lines) < 600
    assert len(made) == len(lines), "what is not shown is not made"
    assert "\x1b" not in "".join(lines)


def test_one_slow_step_changes_little_of_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    console = Console(True, lambda: now[0])
    for step in range(1, 101):
        now[0] += 60 if step == 100 else 6
        console.progress(step, 200, lambda: "", 1, 200 - step)
    lines = capsys.readouterr().out.splitlines()
    before, after = (line.rpartition("  ")[2] for line in lines[-2:])
    assert before == "0:10:12 left"
    assert after == "0:11:24 left"  # 64 steps took 438 s; the slow one alone would have said 1:40:00
    console.progress(1, 200, lambda: "", 1, 199)  # the next adapter's first step: no pace is known
    now[0] += 60
    console.progress(2, 200, lambda: "", 1, 198)
    assert capsys.readouterr().out.splitlines()[-1] == "step 2/200    3:18:00 left"


def test_what_is_left_counts_the_adapters_that_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    # Three adapters of 10 steps and one of 100; a step takes 2 s for each adapter in it.
    now = [0.0]
    console = Console(True, lambda: now[0])
    for step in range(1, 101):
        adapters = 4 if step <= 10 else 1
        now[0] += 2 * adapters
        left = (100 - step) + 3 * max(0, 10 - step)
        console.progress(step, 100, lambda: "", adapters, left)
    left_of = dict(re.findall(r"step (\d+)/100 +([0-9:]+) left", capsys.readouterr().out))
    assert left_of["5"] == "0:03:40"  # 95 steps of one adapter and 5 of three others
    assert left_of["13"] == "0:02:54"


def test_a_job_tells_the_steps_of_the_adapters_that_go_on(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, ...]] = []
    monkeypatch.setattr(Console, "progress", lambda self, done, of, text, *more: told.append(more))
    adapters = [{"name": "bg", "language": "bg", "steps": 2}, {"name": "el", "language": "el"}]
    training = {"steps": 4, "lr": 0.02}
    config = make_config(tmp_path, tiny_base, tiny_shards, adapters=adapters, training=training)
    train(load_config(config))
    assert told == [(2, 1 + 3), (2, 2), (1, 1), (1, 0)]


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    console = Console(True)
    console.progress(1, 4, lambda: "loss bg 1.0", 1, 3)
    console("a line between [brackets]")
    console.progress(4, 4, lambda: "loss bg 0.5", 1, 0)
    console.close()
    shown = capsys.readouterr().out
    assert "a line between [brackets]" in shown
    assert "4/4 loss bg 0.5" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    Console(False).progress(1, 4, lambda: "never", 1, 3)
    assert capsys.readouterr().out == ""
