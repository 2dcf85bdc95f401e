"""Invariant 2: an adapter of a packed run equals the same adapter alone on its own samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_config, make_shards

from salsa_dist import SteeringVectors, load_config, train

STEPS = 50
ADAPTERS: list[dict[str, Any]] = [
    {"name": "bg", "language": "bg"},
    # Other sites, rule and seed, a given rate, and absent from the last 20 steps.
    {
        "name": "el",
        "language": "el",
        "sites": "encoder:last-half",
        "rule": "add",
        "lr": 0.05,
        "steps": 30,
    },
    {
        "name": "bg-2",
        "language": "bg",
        "seed": 5,
        "sites": "llm+llm.cross_attention+encoder.feed_forward:0",
        "rule": "gain",
    },
]


def run(folder: Path, base: Path, shards: Path, adapters: list[dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir()
    # Clipped in most steps, so that clipping over the whole bank would show.
    # What is saved is the mean after each of an adapter's own last steps.
    auto = {"lr_scale": "auto", "silence_stride": "auto"}
    training = {"steps": STEPS, "lr": "auto", **auto, "clip_norm": 0.3, "average": 10}
    config = load_config(make_config(folder, base, shards, adapters=adapters, training=training))
    done = train(config)
    assert done.finished
    return {path.stem: SteeringVectors.load(path).vectors for path in done.adapters}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with weights of their own among them, and clips without speech."""
    return make_shards(tmp_path_factory.mktemp("shards") / "tiny", weighted=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, shards: Path) -> Any:
    return run(tmp_path_factory.mktemp("packed") / "all", tiny_base, shards, ADAPTERS)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a["name"])
def test_packed_equals_alone(
    packed: Any, adapter: dict[str, Any], tmp_path: Path, tiny_base: Path, shards: Path
) -> None:
    alone = run(tmp_path / "alone", tiny_base, shards, [adapter])[adapter["name"]]
    found = packed[adapter["name"]]
    assert found.keys() == alone.keys()
    for site, wanted in alone.items():
        assert wanted.norm() > 0.01  # it has moved
        assert (found[site] - wanted).norm() / wanted.norm() < 1e-5, site


def test_adapters_of_a_packed_run_differ(packed: Any) -> None:
    """The test above would be worth little if they all learned the same."""
    one, other = packed["bg"], packed["bg-2"]
    shared = [(one[site], other[site][:32]) for site in other if site in one]
    assert any((a - b).norm() > 0.1 * a.norm() for a, b in shared)
    assert not torch.equal(one["encoder.2"], packed["el"]["encoder.2"])
