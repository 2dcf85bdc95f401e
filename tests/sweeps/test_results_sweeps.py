"""Each sweep of docs/results can be planned: over a tiny base and noise in place of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import make_base

from salsa_dist.corpus.writer import Sample, ShardWriter
from salsa_dist.sweeps.grid import load_sweep
from salsa_dist.sweeps.plan import make_plan

RESULTS = Path(__file__).parents[2] / "docs/results"
TREES: dict[str, Any] = {
    path.stem: tree
    for path in sorted(RESULTS.glob("*.yaml"))
    if "sweep" in (tree := yaml.safe_load(path.read_text(encoding="utf-8")))
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), encoder_layers=6, decoder_layers=6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "noise"
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 8_000).astype(np.float32)
    languages = sorted({name for tree in TREES.values() for name in tree["grid"]["language"]})
    with ShardWriter(folder, "noise", seed=0) as writer:
        for language in languages:
            for split, count in (("train", 120), ("dev", 60), ("test", 80)):
                samples = [
                    Sample(f"{language}/{split}-{i}", noise, f"kon {i}", language, str(i % 2), "", "")
                    for i in range(count)
                ]
                writer.write(split, language, samples, 60)
        writer.finish({"source": "noise"})
    return folder


@pytest.mark.parametrize("name", TREES)
def test_the_sweep_can_be_planned(name: str, base: Path, shards: Path, tmp_path: Path) -> None:
    tree = TREES[name]
    config = tree["config"]
    config["base"] = {**config["base"], "name": str(base)}
    config["data"] = {**config["data"], "shards": str(shards)}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**tree, "sweep": str(tmp_path / "sweep")}), encoding="utf-8")
    plan = make_plan(load_sweep(path))
    assert sum(len(job.experiments) for job in plan.new) >= len(tree["grid"]["language"])
