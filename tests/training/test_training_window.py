"""Training may use a shorter audio window than the base is compared at."""

import json
from pathlib import Path

import pytest
import torch
from tiny import make_config

from salsa_dist import evaluate, load_config, train
from salsa_dist.config import Config
from salsa_dist.config.fingerprint import digest
from salsa_dist.errors import UserError
from salsa_dist.planner.plan_of_run import shape_of_run
from salsa_dist.report.one_run import build_report
from salsa_dist.run.settled import settled
from salsa_dist.steering.vectors import SteeringVectors


def vectors(config: Config) -> torch.Tensor:
    learned = SteeringVectors.load(train(config).adapters[0]).vectors
    return torch.stack([learned[site] for site in sorted(learned)])


def test_training_uses_the_short_window_and_evaluation_the_whole(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    path = make_config(tmp_path, tiny_base, tiny_shards)
    runs = {
        name: load_config(path, [f"run={tmp_path / name}", *overrides])
        for name, overrides in {
            "short": ["training.window_s=1.2"],
            "all short": ["base.window_s=1.2"],
            "whole": [],
        }.items()
    }
    learned = {name: vectors(config) for name, config in runs.items()}
    assert torch.equal(learned["short"], learned["all short"])
    assert not torch.allclose(learned["short"], learned["whole"])
    evaluate(runs["short"])
    lines = [
        json.loads(line)
        for file in (runs["short"].run / "evaluation").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert {line["window_s"] for line in lines} == {2.0}
    assert {gain["window_s"] for gain in build_report(runs["short"].run)["gains"]} == {2.0}
    assert shape_of_run(runs["short"]).encoder_tokens == 60
    assert shape_of_run(runs["short"], training=False).encoder_tokens == 100


def test_a_training_window_is_part_of_what_decides_the_vectors(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    path = make_config(tmp_path, tiny_base, tiny_shards)
    configs = [load_config(path, more) for more in ([], ["training.window_s=1"])]
    whole, part = (digest(settled(config, "cpu"), "vectors") for config in configs)
    assert whole != part
    with pytest.raises(UserError, match=r"training\.window_s is 2 and base\.window_s 1\.5"):
        load_config(path, ["training.window_s=2", "base.window_s=1.5"])
