"""What the one loop gives to SALSA it gives to LoRA and biases: guards, resume to the bit, signals."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import events
from safetensors.torch import load_file
from tiny import make_base, make_config

from salsa_dist import UserError, evaluate, load_config, train
from salsa_dist.requeue import verdict
from salsa_dist.training.job import Job

METHODS = {"lora": ["method.kind=lora", "method.rank=2"], "bias": ["method.kind=bias"]}
if find_spec("peft.tuners.beft"):
    METHODS["beft"] = ["method.kind=beft"]


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.fixture
def path(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> Path:
    return make_config(tmp_path, tiny_base, tiny_shards)


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "adapters" / name / "tuned.safetensors")


@pytest.mark.parametrize("method", ["salsa", "lora"])
def test_a_step_with_a_loss_above_the_limit_is_skipped_whatever_is_trained(
    method: str, path: Path
) -> None:
    limits = ["training.max_loss=0.001", "training.max_skipped=2"]
    config = load_config(path, [*METHODS.get(method, []), *limits])
    with pytest.raises(UserError, match=r"training\.max_loss, in 3 steps in a row"):
        train(config)
    assert [event["step"] for event in events(config.run, "skipped")] == [0, 1, 2]
    assert {a["lr"] for e in events(config.run, "step") for a in e["adapters"].values()} == {0.0}


@pytest.mark.parametrize("method", METHODS)
def test_killed_inside_an_adapter_and_resumed_is_bit_equal(
    method: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_config(path, [*METHODS[method], f"run={tmp_path / 'whole'}"])
    train(whole)
    config = load_config(path, METHODS[method])
    real = Job.save

    def killed(self: Job, step: int) -> None:
        real(self, step)
        if self.names == ["el"] and step == 3:
            raise Killed

    monkeypatch.setattr(Job, "save", killed)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()
    assert (config.run / "adapters" / "bg").is_dir()
    assert not (config.run / "adapters" / "el").exists()
    assert train(config).finished
    assert [event["resumed_step"] for event in events(config.run, "start")] == [0, 3]
    assert len(events(config.run, "step")) == 12  # none was done twice
    for name in ("bg", "el"):
        wanted, found = weights(whole.run, name), weights(config.run, name)
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert all(a["grad_norm"] > 0 for e in events(config.run, "step") for a in e["adapters"].values())


def test_a_signal_stops_lora_with_its_state_saved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(path, [*METHODS["lora"], "training.save_every_s=1000"])
    real, calls = Job.forward_backward, []

    def signalled(self: Job, step: int, share: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, share)

    monkeypatch.setattr(Job, "forward_backward", signalled)
    done = train(config)
    assert (done.step, done.finished) == (2, False)
    assert [p.stem for p in (config.run / "state" / "bg").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert train(config).finished


def test_an_evaluation_that_is_refused_leaves_old_transcripts_alone(path: Path, tmp_path: Path) -> None:
    few = ["training.steps=1", "evaluation.clips=1"]
    config = load_config(path, few)
    train(config)
    evaluate(config)
    folder = config.run / "evaluation"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(before) == 3
    other = make_base(tmp_path / "other", seed=1)
    for refused, said in (
        ("base.layers={encoder: model.nothing}", "is no list of layers"),
        ("evaluation.placement.kind=3", r"evaluation\.placement\.kind is 3"),
        (f"base.name={other}", "was made for another base"),  # known once the base is loaded
    ):
        with pytest.raises(UserError, match=said):
            evaluate(load_config(path, [*few, "evaluation.max_new_tokens=5", refused]))
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_run_that_finishes_one_more_adapter_at_each_try_is_not_given_up(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that adds transcripts; one that stands still is."""
    logs = tmp_path / "logs"
    logs.mkdir()
    run = tmp_path / "run"
    for name in ("bg", "el"):
        (run / "adapters" / name).mkdir(parents=True)
        assert verdict(run, logs, 137, 2)[0]
    (run / "evaluation").mkdir()
    for lines in (1, 2):
        (run / "evaluation" / "window30-rank0.jsonl").write_text("{}\n" * lines)
        assert verdict(run, logs, 137, 2)[0]
    (run / "state" / "bg").mkdir(parents=True)
    (run / "state" / "bg" / "step-00000004.safetensors").write_text("")
    assert verdict(run, logs, 137, 2)[0]
    assert not verdict(run, logs, 137, 2)[0]
