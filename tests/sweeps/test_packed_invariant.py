"""Invariant 2 in each family: an adapter among others learns what it learns alone.

Adapters are absent from some steps, stop early, differ in sites and rule; on one rank, and on two with
the base replicated and sharded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_ranks import MEMBERS, OTHERS, STEPS, Vectors, packed
from ranks import run_ranks
from tiny_families import FAMILIES

from salsa_dist.config import PlacementConfig
from salsa_dist.placement.ranks import join
from salsa_dist.speech_llms.load import load_speech_llm

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks learned: all families and both placements in one launch."""
    folder = tmp_path_factory.mktemp("packed")
    folders = {name: str(make(folder / name)) for name, make in FAMILIES.items()}
    (folder / "folders.json").write_text(json.dumps(folders))
    # At DeepSpeed's default every weight of a tiny base would stay whole on both ranks.
    strict = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": strict}))
    paths = [str(HERE), *(str(HERE.parent / p) for p in ("", "speech_llms"))]
    env = {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    done = run_ranks(2, HERE / "packed_ranks.py", folder, folder=folder, env=env, timeout_s=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def furthest(found: Vectors, wanted: Vectors) -> tuple[float, str]:
    return max(
        (float((found[name][site] - v).norm() / v.norm()), f"{name} {site}")
        for name, vectors in wanted.items()
        for site, v in vectors.items()
    )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_adapter_among_others_learns_what_it_learns_alone(family: str, out: Path) -> None:
    torch.set_num_threads(1)
    base = load_speech_llm(json.loads((out / "folders.json").read_text())[family])
    alone: Vectors = {}
    replicated, steps = PlacementConfig(kind="replicate"), STEPS.get(family, OTHERS)
    with join() as ranks:
        for member in MEMBERS:
            alone |= packed(base, [member], ranks, replicated, steps)[0]
        together, whole = packed(base, MEMBERS, ranks, replicated, steps)
    assert all(v.norm() > 0.02 for vectors in alone.values() for v in vectors.values())
    assert furthest(together, alone)[0] < 1e-5
    for kind in ("replicate", "full"):
        report: dict[str, Any] = torch.load(out / f"{family}-{kind}.pt", weights_only=True)
        assert report["held"] == (whole if kind == "replicate" else 0)
        apart, where = furthest(report["learned"], alone)
        assert apart < 1e-5, (kind, where)
