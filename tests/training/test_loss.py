"""The loss of a fixed tiny run, against the curve that it had when it was checked by hand."""

import json
from pathlib import Path

import pytest
from run_results import events
from tiny import make_config

from salsa_dist import load_config, train

GOLDEN = Path(__file__).parent / "golden_loss.json"


def losses(folder: Path, base: Path, shards: Path) -> dict[str, list[float]]:
    train(load_config(make_config(folder, base, shards, training={"steps": 12, "lr": 0.05})))
    steps = events(folder / "run", "step")
    return {name: [round(s["adapters"][name]["loss"], 6) for s in steps] for name in ("bg", "el")}


def test_loss_curve_is_the_golden_one(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    found, golden = losses(tmp_path, tiny_base, tiny_shards), json.loads(GOLDEN.read_text())
    for name, wanted in golden.items():
        assert found[name] == pytest.approx(wanted, rel=1e-4)
        assert sum(found[name][-3:]) < 0.97 * sum(found[name][:3])  # it does learn
