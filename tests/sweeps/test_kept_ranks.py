"""A kept prefix and halving on two ranks, the base on each of them whole and cut over both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import make_config

from salsa_dist import SteeringVectors, load_config, train

HERE = Path(__file__).parent
STEPS = 12
RUNGS = [4, 8]
HALVING = {"halving": {"rungs": RUNGS, "keep": 0.5}, "dev_clips": 4}
ADAPTERS: list[dict[str, Any]] = [
    {"name": "low", "language": "bg", "sites": "encoder:1"},
    {"name": "high", "language": "bg", "sites": "encoder:2+llm", "rule": "add", "lr": 0.02},
    {"name": "llm", "language": "bg", "sites": "llm:1", "lr": 0.03},
    {"name": "both", "language": "bg", "sites": "encoder:1-2", "lr": 0.005},
    {"name": "other", "language": "el", "sites": "encoder:1"},
]
JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "memory": {"prefix_cache": "memory"},
    "disk": {"prefix_cache": "disk"},
    "halving": HALVING,
    "halving-cut": {**HALVING, "save_every_s": 0},
    "halving-kept": {**HALVING, "prefix_cache": "memory"},
    "halving-cer": {
        "halving": {"rungs": RUNGS, "keep": 0.5, "metric": "cer"},
        "dev_clips": 3,
        "prefix_cache": "memory",
    },
}
PLACEMENTS = ("replicate", "full")
Vectors = dict[str, dict[str, torch.Tensor]]


def write_config(folder: Path, base: Path, shards: Path, placement: Any, **training: Any) -> Path:
    folder.mkdir(parents=True)
    training = {"steps": STEPS, "lr": 0.01, "clip_norm": 0.3, "save_every_s": 600, **training}
    sections: dict[str, Any] = {"adapters": ADAPTERS, "training": training, "placement": placement}
    return make_config(folder, base, shards, **sections)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    """All jobs under both placements, in one launch."""
    folder = tmp_path_factory.mktemp("kept")
    # At DeepSpeed's default every weight of a tiny base would stay whole on both ranks.
    strict = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": strict}))
    jobs = []
    for kind in PLACEMENTS:
        placement = {"kind": kind, **({"ds_config": str(folder / "ds.json")} if kind == "full" else {})}
        for name, training in JOBS.items():
            own = folder / kind / name
            config = write_config(own, tiny_base, tiny_shards, placement, **training)
            cut = RUNGS[1] if name == "halving-cut" else None
            jobs.append({"name": f"{kind}-{name}", "config": str(config), "cut": cut})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = run_ranks(2, HERE / "kept_ranks.py", folder, folder=folder, timeout_s=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Vectors:
    """What one process learns that shares nothing."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    config = write_config(folder, tiny_base, tiny_shards, {"kind": "replicate"}, share_prefix=False)
    done = train(load_config(config))
    return {path.name: SteeringVectors.load(path).vectors for path in done.adapters}


def learned(out: Path, kind: str, name: str) -> Vectors:
    folders = sorted((out / kind / name / "run" / "adapters").iterdir())
    return {path.name: SteeringVectors.load(path).vectors for path in folders}


def rungs(out: Path, kind: str, name: str) -> list[dict[str, Any]]:
    text = (out / kind / name / "run" / "halving.json").read_text()
    return list(json.loads(text)["rungs"])


def apart(one: Vectors, other: Vectors, name: str) -> float:
    return max(float((one[name][site] - v).norm() / v.norm()) for site, v in other[name].items())


def same(one: Vectors, other: Vectors) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name][site], v) for name, own in other.items() for site, v in own.items()
    )


# A whole base decodes for as long as its own transcripts take: only a shared one must keep in step.
@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in PLACEMENTS for n in JOBS if (k, n) != ("replicate", "halving-cer")],
)
def test_all_ranks_run_the_same_modules(out: Path, kind: str, name: str) -> None:
    one, other = (json.loads((out / f"{kind}-{name}-rank{r}.json").read_text()) for r in (0, 1))
    assert one["calls"] > 100
    assert one == other


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_the_base_is_where_it_should_be(out: Path, kind: str) -> None:
    text = (out / kind / "memory" / "run" / "events.jsonl").read_text()
    placed = next(e for e in map(json.loads, text.splitlines()) if e["event"] == "placement")
    share = placed["resident_bytes_between_steps"] / placed["base_bytes"]
    assert share == 1 if kind == "replicate" else share < 0.6


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize("name", ["plain", "memory", "disk"])
def test_a_kept_prefix_changes_no_adapter(out: Path, alone: Vectors, kind: str, name: str) -> None:
    found = learned(out, kind, name)
    for adapter in ADAPTERS:
        assert all(v.norm() > 0.02 for v in alone[adapter["name"]].values())
        assert apart(found, alone, adapter["name"]) < 1e-5, adapter["name"]


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_halving_after_a_stop_is_the_same_to_the_bit(out: Path, kind: str) -> None:
    """Of two runs one is killed before its second decision; both decide by the data alone."""
    decided = rungs(out, kind, "halving")
    assert [len(rung["dropped"]) for rung in decided] == [2, 1]
    assert rungs(out, kind, "halving-cut") == decided
    assert same(learned(out, kind, "halving-cut"), learned(out, kind, "halving"))


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize("name", ["halving", "halving-kept"])
def test_halving_changes_no_survivor(out: Path, alone: Vectors, kind: str, name: str) -> None:
    dropped = {n for rung in rungs(out, kind, name) for n in rung["dropped"]}
    assert dropped == {n for rung in rungs(out, kind, "halving") for n in rung["dropped"]}
    found, full = learned(out, kind, name), learned(out, kind, "plain")
    for adapter in ADAPTERS:
        own = adapter["name"]
        if own in dropped:
            assert apart(found, alone, own) > 1e-2, own
        else:
            assert apart(found, full, own) < 1e-5, own
            assert apart(found, alone, own) < 1e-5, own


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_errors_decide_on_two_ranks_as_losses_do(out: Path, kind: str) -> None:
    decided = rungs(out, kind, "halving-cer")
    assert [len(rung["dropped"]) for rung in decided] == [2, 1]
    for rung in decided:
        gone = [rung["cer"][name] for name in rung["dropped"]]
        left = [r for n, r in rung["cer"].items() if n not in rung["dropped"] and n != "other"]
        assert max(left) <= min(gone)


def test_placements_drop_the_same(out: Path) -> None:
    one, other = (rungs(out, kind, "halving") for kind in PLACEMENTS)
    assert [r["dropped"] for r in one] == [r["dropped"] for r in other]
