"""Each sweep of docs/results can be planned: over a tiny base and noise in place of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_base, make_shards

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
    languages = sorted({name for tree in TREES.values() for name in tree["grid"]["language"]})
    folder = tmp_path_factory.mktemp("shards") / "noise"
    return make_shards(folder, train=12, held_out=80, languages=languages)


@pytest.mark.parametrize("name", TREES)
def test_the_sweep_can_be_planned(name: str, base: Path, shards: Path, tmp_path: Path) -> None:
    tree = TREES[name]
    config = {
        **tree["config"],
        "base": {**tree["config"]["base"], "name": str(base)},
        "data": {**tree["config"]["data"], "shards": str(shards)},
    }
    path = tmp_path / "sweep.yaml"
    own = {**tree, "sweep": str(tmp_path / "sweep"), "config": config}
    path.write_text(yaml.safe_dump(own), encoding="utf-8")
    plan = make_plan(load_sweep(path))
    assert sum(len(job.experiments) for job in plan.new) >= len(tree["grid"]["language"])
