"""Adapters that are decoded in the middle of training, by each placement: the steps after it go on."""

import json
from pathlib import Path
from typing import Any

import decoding_ranks
import pytest
import torch
from clips import mixed_shards
from ranks import run_ranks
from tiny import make_config

from salsa_dist import SteeringVectors, UserError, load_config, train

# With the settings that are handed out, small weights stay whole once gathered, in decoding too.
PLACEMENTS: dict[str, dict[str, Any]] = {
    "replicate": {"kind": "replicate"},
    "full": {"kind": "full"},
    "lean": {"kind": "full", "ds_config": "lean.json"},
    "offloaded": {"kind": "replicate", "offload": "cpu"},
}
TRAINING = {
    "steps": 6,
    "lr": 0.02,
    "dev_clips": 2,
    "halving": {"rungs": [2, 4], "keep": 0.7, "metric": "cer"},
}
ADAPTERS = [
    {"name": "low", "language": "bg", "sites": "encoder:1"},
    {"name": "high", "language": "bg", "sites": "encoder:2+llm", "lr": 0.03},
    {"name": "llm", "language": "bg", "sites": "llm:1"},
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    """The folder of the runs, one a placement, in one launch."""
    folder = tmp_path_factory.mktemp("decoding")
    configs = []
    for name, placement in PLACEMENTS.items():
        (folder / name).mkdir()
        sections = {"adapters": ADAPTERS, "training": TRAINING, "placement": placement}
        configs.append(str(make_config(folder / name, tiny_base, tiny_shards, **sections)))
    train_on(2, folder, configs)
    return folder


def train_on(ranks: int, folder: Path, configs: list[str]) -> None:
    done = run_ranks(ranks, decoding_ranks.__file__, *configs, folder=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("name", PLACEMENTS)
def test_training_goes_on_after_adapters_were_decoded(out: Path, name: str) -> None:
    rungs = json.loads((out / name / "run" / "halving.json").read_text())["rungs"]
    assert [(rung["step"], len(rung["cer"]), rung["dropped"]) for rung in rungs] == [
        (2, 3, []),  # of three that are as bad as each other all go on
        (4, 3, []),
    ]
    wanted = {
        path.name: SteeringVectors.load(path).vectors
        for path in sorted((out / "replicate" / "run" / "adapters").iterdir())
    }
    for adapter in wanted:
        found = SteeringVectors.load(out / name / "run" / "adapters" / adapter).vectors
        for site, vector in wanted[adapter].items():
            assert vector.norm() > 0.02
            assert float(torch.linalg.vector_norm(found[site] - vector) / vector.norm()) < 1e-5


def test_two_ranks_halve_mixed_speech_by_the_mer_of_one(tmp_path: Path, tiny_base: Path) -> None:
    mixed_shards(tmp_path / "shards")
    adapters = [
        {"name": f"lr{lr}", "language": "zh-en", "sites": "encoder", "lr": lr} for lr in (0.001, 1.0)
    ]
    configs = {}
    for name, metric in (("one", "mer"), ("two", "mer"), ("by_cer", "cer")):
        (tmp_path / name).mkdir()
        halving = {"rungs": [2], "keep": 0.5, "metric": metric}
        training = {**TRAINING, "steps": 3, "halving": halving}
        sections = {"adapters": adapters, "training": training}
        sections["data"] = {"shards": str(tmp_path / "shards"), "clips_per_step": 2, "readers": 2}
        configs[name] = str(make_config(tmp_path / name, tiny_base, tmp_path / "shards", **sections))
    train_on(1, tmp_path, [configs["one"]])
    train_on(2, tmp_path, [configs["two"], configs["by_cer"]])
    one, two, by_cer = (
        json.loads((tmp_path / name / "run" / "halving.json").read_text())["rungs"] for name in configs
    )
    assert one == two
    ((rung,), (other,)) = two, by_cer
    assert len(rung["dropped"]) == 1
    assert rung["mer"] != other["cer"]
    for rate in rung["mer"].values():  # of 我 们 go and vuk 好 lisa
        assert (rate * 6) == pytest.approx(round(rate * 6))


@pytest.mark.parametrize(("metric", "says"), [("mer", "bg is not mixed"), ("wer", "zh-en is mixed")])
def test_halving_by_a_rate_that_a_language_does_not_have_is_refused(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, metric: str, says: str
) -> None:
    language, shards = ("bg", tiny_shards) if metric == "mer" else ("zh-en", tmp_path / "shards")
    if metric == "wer":
        mixed_shards(shards)
    adapters = [{**adapter, "language": language} for adapter in ADAPTERS]
    training = {**TRAINING, "halving": {"rungs": [2], "metric": metric}}
    data = {"shards": str(shards), "clips_per_step": 2, "readers": 2}
    sections = {"adapters": adapters, "training": training, "data": data}
    config = load_config(make_config(tmp_path, tiny_base, shards, **sections))
    with pytest.raises(UserError, match=f"training.halving.metric is {metric}, and {says}"):
        train(config)
    assert not config.run.exists()
