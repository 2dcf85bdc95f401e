"""The vectors that were best on dev clips are what is saved; adapters that get no better stop."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from run_results import events
from safetensors.torch import load_file
from tiny import make_config

from salsa_dist import SteeringVectors, UserError, load_config, train
from salsa_dist.config import parse_config
from salsa_dist.data.index import ShardIndex
from salsa_dist.metrics.normalise import Rules
from salsa_dist.report.figures import run_figures
from salsa_dist.report.one_run import read_report
from salsa_dist.report.page import report_page
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.settled import in_steps
from salsa_dist.training import dev_loss
from salsa_dist.training.average import Average
from salsa_dist.training.best import Best
from salsa_dist.training.loop import Trained

STEPS = 4
TRAINING = {"steps": STEPS, "lr": 30, "decay": "none", "save_every_s": 0, "keep": 100, "dev_clips": 4}
ENGLISH = {"batch": 4, "max_new_tokens": 8, "normaliser": "english"}
CALM = {"name": "calm", "language": "bg", "sites": "encoder:1-2", "lr": 0.003}


def two(good: Path) -> list[dict[str, Any]]:
    """One that starts from what was trained well and goes astray, and one that improves slowly."""
    wild = {"name": "wild", "language": "bg", "sites": "encoder:1-2", "start_from": str(good)}
    return [wild, CALM]


def trained(folder: Path, base: Path, shards: Path, **training: Any) -> Trained:
    folder.mkdir()
    sections = {k: training.pop(k) for k in ("adapters", "method", "evaluation") if k in training}
    sections = {"adapters": [CALM], "trackers": [], **sections}
    config = make_config(folder, base, shards, training={**TRAINING, **training}, **sections)
    return train(load_config(config))


def vectors(folder: Path) -> dict[str, torch.Tensor]:
    return SteeringVectors.load(folder).vectors


def before_step(folder: Path, step: int, row: int) -> dict[str, torch.Tensor]:
    """What an adapter was before `step`, by the state of then."""
    tensors = load_file(RunFolder(folder / "run").state / f"step-{step:08d}.safetensors")
    return {k.removeprefix("vectors/"): v[row] for k, v in tensors.items() if k.startswith("vectors/")}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    """An adapter that a large rate makes worse."""
    folder = tmp_path_factory.mktemp("good") / "a"
    adapter = {**CALM, "name": "good", "lr": 0.3}
    assert trained(folder, tiny_base, tiny_shards, adapters=[adapter], steps=12).finished
    return RunFolder(folder / "run").adapter("good")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path, good: Path
) -> Path:
    folder = tmp_path_factory.mktemp("best") / "a"
    assert trained(folder, tiny_base, tiny_shards, adapters=two(good), dev_every=2).finished
    return folder


def test_the_best_is_the_adapter_and_the_last_is_kept(run: Path, good: Path) -> None:
    found = events(run / "run", "dev")
    assert [e["step"] for e in found] == [0, 2, 4]
    for row, name in enumerate(("wild", "calm")):
        losses = {e["step"]: e["dev_loss"][name] for e in found}
        best = min(losses, key=lambda step: losses[step])
        folder = RunFolder(run / "run")
        saved, last = vectors(folder.adapter(name)), vectors(folder.last / name)
        assert SteeringVectors.load(folder.adapter(name)).training.steps == best
        assert SteeringVectors.load(folder.last / name).training.steps == STEPS
        for site, vector in saved.items():
            there = before_step(run, best, row)[site] if best else vectors(good)[site]
            assert torch.equal(vector, there), (name, site)
            assert torch.equal(last[site], before_step(run, STEPS, row)[site])
        (told,) = events(run / "run", "dev_loss")
        assert told["adapters"][name] == losses[best]
    # Else the one would be the other whatever is saved.
    assert SteeringVectors.load(run / "run/adapters/wild").training.steps == 0
    assert SteeringVectors.load(run / "run/adapters/calm").training.steps == STEPS


def test_measuring_moves_nothing(
    run: Path, good: Path, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    assert trained(tmp_path / "plain", tiny_base, tiny_shards, adapters=two(good)).finished
    for name in ("wild", "calm"):
        plain = vectors(tmp_path / "plain/run/adapters" / name)
        for site, vector in vectors(run / "run/last" / name).items():
            assert torch.equal(vector, plain[site])
    assert not (tmp_path / "plain/run/last").exists()


def test_one_that_gets_no_better_stops_and_the_other_goes_on(
    run: Path, good: Path, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    how = {"adapters": two(good), "dev_every": 2, "patience": 1}
    assert trained(tmp_path / "a", tiny_base, tiny_shards, **how).finished
    found = events(tmp_path / "a" / "run", "dev")
    (stopped,) = [e["step"] for e in found if e["stopped"] == ["wild"]]
    best = max(e["best"]["wild"] for e in found if "wild" in e["best"])
    assert stopped == best + 2 < STEPS
    steps = events(tmp_path / "a" / "run", "step")
    assert all(("wild" in e["adapters"]) == (e["step"] < stopped) for e in steps)
    assert len(steps) == STEPS
    for where in ("adapters", "last"):
        mine, plain = (vectors(at / "run" / where / "calm") for at in (tmp_path / "a", run))
        for site, vector in mine.items():
            assert (vector - plain[site]).norm() <= 1e-5 * plain[site].norm()
    assert SteeringVectors.load(tmp_path / "a/run/last/wild").training.steps == stopped


def test_where_all_have_stopped_the_run_ends(
    good: Path, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    how = {"adapters": two(good)[:1], "dev_every": 2, "patience": 1}
    done = trained(tmp_path / "a", tiny_base, tiny_shards, **how)
    assert done.finished
    assert done.step < STEPS
    assert events(tmp_path / "a" / "run", "step")[-1]["step"] == done.step - 1
    before = vectors(tmp_path / "a/run/adapters/wild")
    again = train(load_config(tmp_path / "a/config.yaml"))
    assert again.step == done.step
    assert len(events(tmp_path / "a" / "run", "step")) == done.step  # nothing was trained again
    after = vectors(tmp_path / "a/run/adapters/wild")
    assert all(torch.equal(after[site], vector) for site, vector in before.items())


@pytest.mark.parametrize("metric", ["cer", "wer"])
def test_chosen_by_errors(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = mock.Mock(wraps=dev_loss.score)
    monkeypatch.setattr(dev_loss, "score", scored)
    how = {"dev_every": 0.5, "dev_metric": metric, "evaluation": ENGLISH}
    assert trained(tmp_path / "a", tiny_base, tiny_shards, **how).finished
    assert {frozenset(e) & {"cer", "wer", "mer"} for e in events(tmp_path / "a" / "run", "dev")} == {
        frozenset({"cer", "wer"})
    }
    report = read_report(tmp_path / "a/run")
    curves = report.facts["training"]["dev_rates"]
    assert [step for step, _ in curves["wer"]["calm"]] == [0, 2, 4]
    assert {"dev_cer", "dev_wer"} <= run_figures(report).keys()
    assert "WER on dev clips while training" in report_page(report)
    assert {call.kwargs["rules"] for call in scored.call_args_list} == {Rules("english")}
    found = events(tmp_path / "a" / "run", "dev")
    assert [e["step"] for e in found] == [0, 2, 4]
    rates = {e["step"]: e[metric]["calm"] for e in found}
    assert found[-1]["best"]["calm"] == min(rates, key=lambda step: rates[step])
    assert all("calm" in e["dev_loss"] for e in found)


def test_lora_too(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    lora = {"kind": "lora", "rank": 2, "alpha": 4}
    adapters = [{**CALM, "lr": lr, "name": name} for name, lr in (("wild", 30.0), ("calm", 0.003))]
    how = {"adapters": adapters, "method": lora, "dev_every": 2}
    assert trained(tmp_path / "a", tiny_base, tiny_shards, **how).finished
    found = events(tmp_path / "a" / "run", "dev")
    assert [e["step"] for e in found] == [0, 2, 4] * 2
    for name, events_ in (("wild", found[:3]), ("calm", found[3:])):
        losses = {e["step"]: e["dev_loss"].get(name, float("inf")) for e in events_}
        best = min(losses, key=lambda step: losses[step])
        assert events_[-1]["best"][name] == best
        at = [tmp_path / "a/run" / where / name / "tuned.safetensors" for where in ("adapters", "last")]
        saved, last = (load_file(path) for path in at)
        assert all(torch.equal(saved[x], last[x]) for x in saved) == (best == STEPS)


class Two:
    """Two adapters, or one alone as LoRA has it."""

    def __init__(self, *shape: int) -> None:
        self.vectors = torch.zeros(shape or (2, 3))

    def learned(self) -> dict[str, torch.Tensor]:
        return {"vectors/a": self.vectors}


def test_an_adapter_is_measured_by_its_own_steps_alone() -> None:
    together, alone = Best(Two(), [8, 5], [3, 2], None), Best(Two(1, 3), [8], [3], None)
    found = {step: together.due(step) for step in range(9)}
    assert found == {0: [0, 1], 1: [], 2: [1], 3: [0], 4: [1], 5: [1], 6: [0], 7: [], 8: [0]}
    assert [step for step in found if 0 in found[step]] == [s for s in range(9) if alone.due(s)]


@pytest.mark.parametrize("over", [3, 0.5])
def test_averages_are_those_of_the_adapter_alone(over: int | float) -> None:
    """To the bit, whatever shares its bank; the numbers of a mean by hand."""
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    two, alone, tuned = Two(2, 5), Two(1, 5), Two(5)
    # Measured every 4 steps; the other one earlier, and it ends first.
    averages = [
        Average(two, over, [[2, 3], [4, 7]]),
        Average(alone, over, [[4, 7]]),
        Average(tuned, over, [[4, 7]]),
    ]
    for step, value in enumerate(values):
        two.vectors[0] = -value
        for vectors in (two.vectors[1], alone.vectors[0], tuned.vectors):
            vectors.copy_(value)
        for average, active in zip(averages, ([0, 1] if step < 3 else [1], [0], [0]), strict=True):
            average.after_step(step, active)
        if step + 1 not in (4, 7):
            continue
        weights = torch.tensor([over ** (step - s) for s in range(step + 1)] if over < 1 else [1.0] * 3)
        wanted = (weights[:, None] / weights.sum() * values[step + 1 - len(weights) : step + 1]).sum(0)
        with averages[0].instead(), averages[1].instead(), averages[2].instead():
            torch.testing.assert_close(two.vectors[1], wanted)
            assert torch.equal(two.vectors[1], alone.vectors[0])
            assert torch.equal(two.vectors[1], tuned.vectors)
        assert torch.equal(two.vectors[1], value)


def test_the_average_is_what_is_measured_and_saved(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    short = {**CALM, "name": "short", "steps": 3}
    how = {"adapters": [CALM, short], "dev_every": 4, "average": 2}
    assert trained(tmp_path / "a", tiny_base, tiny_shards, **how).finished
    found, saved = events(tmp_path / "a" / "run", "dev"), {}
    assert [(e["step"], sorted(e["dev_loss"])) for e in found] == [
        *((0, ["calm", "short"]), (3, ["short"]), (4, ["calm"])),
    ]
    for row, (name, steps) in enumerate((("calm", STEPS), ("short", 3))):
        saved[name] = vectors(tmp_path / "a/run/last" / name)
        after = [before_step(tmp_path / "a", step, row) for step in (steps - 1, steps)]
        for site, vector in saved[name].items():
            torch.testing.assert_close(vector, (after[0][site] + after[1][site]) / 2)
            assert not torch.equal(vector, after[1][site])
    # Another run measures what was saved, before its first step; its steps are counted by clips.
    again = {**CALM, "start_from": str(tmp_path / "a/run/last/calm")}
    how = {"adapters": [again], "dev_every": 4, "steps": 99, "epochs": 0.25}
    done = trained(tmp_path / "b", tiny_base, tiny_shards, **how)
    assert done.step == 2  # a quarter of 24 clips, 5 a step
    first = events(tmp_path / "b" / "run", "dev")[0]["dev_loss"]["calm"]
    assert first == pytest.approx(found[-1]["dev_loss"]["calm"], rel=1e-6)
    assert train(load_config(tmp_path / "b/run/config.yaml")).step == 2


def test_epochs_are_counted_in_clips_that_are_sampled(tiny_base: Path, tiny_shards: Path) -> None:
    index = ShardIndex.load(tiny_shards)
    adapters: list[dict[str, Any]] = [
        {"name": "a", "language": "bg"},
        {"name": "b", "language": ["bg", "el"]},
        {"name": "c", "language": "bg", "steps": 3},
        {"name": "d", "language": "bg", "minutes": 0.2},
    ]
    tree: dict[str, Any] = {
        "run": "run",
        "base": {"name": str(tiny_base)},
        "adapters": adapters,
        "data": {"shards": str(tiny_shards), "clips_per_step": 5},
        "training": {"epochs": 2},
    }
    steps = [a.steps for a in in_steps(parse_config(tree, "here"), index).adapters]
    assert steps[:3] == [10, 20, 3]  # of 48, 96 and any number of clips
    assert 0 < (steps[3] or 0) < 10
    tree["training"]["window_s"] = 1.0
    clips = sum(e.seconds <= 1 for s in index.select("train", "bg") for e in s.entries)
    assert in_steps(parse_config(tree, "here"), index).adapters[0].steps == math.ceil(2 * clips / 5)


def test_equal_is_not_better_and_nan_is_worse() -> None:
    two: Any = Two()
    best = Best(two, steps=[8, 8], every=[2, 2], patience=2)
    best.measured(0, {0: 3.0, 1: 3.0}, {0: 3.0, 1: 3.0})
    two.vectors += 1
    assert best.measured(2, {0: 3.0, 1: 2.0}, {0: 3.0, 1: 2.0}) == []
    two.vectors += 1
    assert not best.due(2)
    assert best.measured(4, {0: 2.0, 1: float("nan")}, {0: float("nan"), 1: float("nan")}) == [0]
    assert best.stopped == {0: 4}
    assert best.steps == [0, 2]
    best.put_back()
    assert two.vectors.tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"dev_every": 3, "dev_clips": 0}, "dev_clips"),
        ({"patience": 3}, "dev_every"),
        ({"dev_every": 1.5}, "dev_every"),
        ({"dev_every": 3, "dev_metric": "mer"}, "mer"),
        ({"epochs": 3, "dev_clips": 3, "halving": {"rungs": [1]}}, "epochs"),
        ({"average": 1}, "average"),
    ],
)
def test_refused(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, training: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        trained(tmp_path / "a", tiny_base, tiny_shards, **training)
    assert not (tmp_path / "a/run/adapters").exists()
