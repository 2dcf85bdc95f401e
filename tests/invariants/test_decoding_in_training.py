"""Adapters that are decoded in the middle of training, by each placement: the steps after it go on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import decoding_ranks
import pytest
import torch
from tiny import make_config

from salsa_dist import SteeringVectors

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
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, decoding_ranks.__file__, *configs], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


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
