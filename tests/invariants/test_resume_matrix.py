"""Invariant 3, for each feature that orders clips: killed, on other ranks, with other workers.

`docs/coming-back.md` makes the promises. `test_stopping.py` kills processes; here a run ends by an
exception in the middle of a step, and goes on in this process or in two ranks.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import resumed
import torch
from ranks import run_ranks
from run_results import events, vectors
from tiny import make_config, make_shards

from salsa_dist import load_config, train

STEPS = 9
# A checkpoint comes after every step. With halving the first of them is where adapters are dropped.
CUTS = (4, 6)
ONE = [{"name": "bg", "language": "bg"}, {"name": "el", "language": "el", "rule": "add", "steps": 7}]
THREE = [
    {"name": f"bg-{lr}", "language": "bg", "lr": lr, "sites": "encoder:1-2"} for lr in (1e-4, 0.02, 0.1)
]
# What differs from `settings`: of the data, of the training, and the adapters.
FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "join_clips": ({"join_clips": 3}, {}, ONE),
    "mix": (
        {},
        {"lr": "auto", "lr_scale": "auto", "silence_stride": "auto"},
        [{"name": "both", "language": ["bg", "el"], "mix": {"weights": {"bg": 2, "el": 1}}}],
    ),
    "augment": ({"augment": {"speed": [0.9, 1.1], "noise_db": [10, 30], "time_masks": 2}}, {}, ONE),
    "seconds_per_step": ({"clips_per_step": None, "seconds_per_step": 5.0}, {}, ONE),
    "halving": (
        {},
        {"dev_clips": 3, "halving": {"rungs": [CUTS[0]], "keep": 0.4}, "average": 3},
        THREE,
    ),
    "dev_every": ({}, {"dev_clips": 3, "dev_every": 2, "patience": 2, "average": 0.6}, THREE),
    "average": ({}, {"average": 4}, ONE),
    "prefix_cache": ({}, {"prefix_cache": "disk"}, THREE),
}
Vectors = dict[str, torch.Tensor]


def config_of(feature: str, folder: Path, base: Path, shards: Path) -> Path:
    """A config file in `folder`, its run beside it."""
    folder.mkdir()
    data, training, adapters = FEATURES[feature]
    return make_config(
        *(folder, base, shards),
        data={"shards": str(shards), "clips_per_step": 5, "readers": 4, **data},
        training={"steps": STEPS, "lr": 0.02, "save_every_s": 0, "keep": STEPS, **training},
        adapters=adapters,
        trackers=[],
    )


def starts(folder: Path) -> list[int]:
    """The step that each start of a run went on with."""
    return [event["resumed_step"] for event in events(folder / "run", "start")]


def equal(found: Vectors, wanted: Vectors) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())


def assert_near(found: Vectors, wanted: Vectors) -> None:
    assert found.keys() == wanted.keys()
    for name, vector in wanted.items():
        assert (found[name] - vector).norm() / vector.norm() < 1e-5, name


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with weights of their own among them, and clips without speech."""
    return make_shards(tmp_path_factory.mktemp("shards") / "tiny", weighted=True)


@pytest.fixture(scope="module")
def never_stopped(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, shards: Path
) -> dict[str, Vectors]:
    """What each feature's run gives in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    for feature in FEATURES:
        train(load_config(config_of(feature, folder / feature, tiny_base, shards)))
    return {feature: vectors(folder / feature / "run") for feature in FEATURES}


@pytest.mark.parametrize("feature", FEATURES)
def test_killed_twice_it_is_equal_to_the_bit(
    feature: str,
    never_stopped: dict[str, Vectors],
    tmp_path: Path,
    tiny_base: Path,
    shards: Path,
) -> None:
    config = load_config(config_of(feature, tmp_path / "cut", tiny_base, shards))
    for cut in CUTS:
        resumed.killed(config, cut)
    assert train(config).finished
    assert starts(tmp_path / "cut") == [0, *CUTS]
    assert equal(vectors(tmp_path / "cut" / "run"), never_stopped[feature])


@pytest.mark.parametrize("feature", FEATURES)
def test_with_other_workers_it_is_equal_to_the_bit(
    feature: str,
    never_stopped: dict[str, Vectors],
    tmp_path: Path,
    tiny_base: Path,
    shards: Path,
) -> None:
    path = config_of(feature, tmp_path / "cut", tiny_base, shards)
    resumed.killed(load_config(path), CUTS[1])
    assert train(load_config(path, ["data.workers=2"])).finished
    assert equal(vectors(tmp_path / "cut" / "run"), never_stopped[feature])


def on_two_ranks(folder: Path, *words: str | Path) -> None:
    done = run_ranks(2, resumed.__file__, *words, folder=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-9000:]


@pytest.fixture(scope="module")
def more_ranks(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, shards: Path
) -> dict[str, Path]:
    """Begun by one rank, ended by two."""
    folder = tmp_path_factory.mktemp("more")
    paths = {f: config_of(f, folder / f, tiny_base, shards) for f in FEATURES}
    for path in paths.values():
        resumed.killed(load_config(path), CUTS[1])
    on_two_ranks(folder, *paths.values())
    return {feature: path.parent for feature, path in paths.items()}


@pytest.fixture(scope="module")
def fewer_ranks(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, shards: Path
) -> dict[str, Path]:
    """Begun by two ranks, ended by one."""
    folder = tmp_path_factory.mktemp("fewer")
    paths = {f: config_of(f, folder / f, tiny_base, shards) for f in FEATURES}
    on_two_ranks(folder, "--stop", str(CUTS[1]), *paths.values())
    for path in paths.values():
        assert train(load_config(path)).finished
    return {feature: path.parent for feature, path in paths.items()}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("ranks", ["more_ranks", "fewer_ranks"])
def test_on_another_number_of_ranks_it_is_equal_to_1e_5(
    ranks: str, feature: str, never_stopped: dict[str, Vectors], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(ranks)[feature]
    first, then = starts(folder)
    assert first == 0
    assert CUTS[1] <= then < STEPS
    assert_near(vectors(folder / "run"), never_stopped[feature])


def test_thinned_padding_is_measured_once_and_alike_on_one_rank_and_on_two(
    more_ranks: dict[str, Path], fewer_ranks: dict[str, Path]
) -> None:
    [one] = events(more_ranks["mix"] / "run", "silence_stride")
    [two] = events(fewer_ranks["mix"] / "run", "silence_stride")
    assert two["adapters"] == one["adapters"]
    assert two["cosines"]["both"] == pytest.approx(one["cosines"]["both"], abs=2e-4)


def test_the_features_change_what_is_trained(never_stopped: dict[str, Vectors]) -> None:
    """Else the tests above would show nothing of them."""
    seen = [never_stopped[f]["bg encoder.2"] for f in ("join_clips", "augment", "seconds_per_step")]
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in pairwise(seen))
    halved, kept = never_stopped["halving"], never_stopped["prefix_cache"]
    assert halved.keys() == kept.keys()
    assert not equal(halved, kept)  # an adapter was dropped
