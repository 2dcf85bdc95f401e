"""`accelerate launch`, torchrun and the launcher start the same training, really on two ranks and
really sharded.

accelerate starts a single process, or turns ZeRO off, in silence when its config is not quite right; a
falling loss would not show it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import events, vectors
from tiny import make_config

from salsa_dist import load_config, train

REPOSITORY = Path(__file__).parents[2]
MODULE = ["-m", "salsa_dist", "train", "CONFIG"]
STARTS = {
    "accelerate": [
        *(sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"),
        *("--config_file", str(REPOSITORY / "launchers/accelerate/cpu-2.yaml"), *MODULE),
    ],
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", *MODULE),
    ],
    "launcher": [
        *(sys.executable, str(REPOSITORY / "launchers/slurm.py"), "train", "--config", "CONFIG"),
        *("--cluster", "local", "--nodes", "1", "--tasks-per-node", "2"),
    ],
}


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path
) -> dict[str, Path]:
    """The run's folder by the way in which it was started."""
    folder = tmp_path_factory.mktemp("starts")
    strict = folder / "strict.json"
    strict.write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    # Rates and thinned padding are measured under either placement.
    auto = {"lr_scale": "auto", "silence_stride": "auto"}
    training = {"steps": 6, "save_every_s": 0, **auto}
    config = make_config(folder, tiny_base, tiny_shards, training=training)
    runs = {}
    for name, command in STARTS.items():
        runs[name] = folder / name
        words = [str(config) if word == "CONFIG" else word for word in command]
        words += [f"run={runs[name]}", "placement.kind=full", f"placement.ds_config={strict}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    train(load_config(config, [f"run={folder / 'alone'}"]))
    return {**runs, "alone": folder / "alone"}


def placement(run: Path) -> dict[str, Any]:
    (found,) = events(run, "placement")
    return {key: value for key, value in found.items() if key not in ("time", "why")}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", STARTS)
def test_it_trains_sharded_and_as_one_process_would(started: dict[str, Path], name: str) -> None:
    told = placement(started[name])
    assert told["world_size"] == told["group_size"] == 2
    assert told["resident_bytes_between_steps"] <= told["base_bytes"] / 2 + 4096
    assert told["gathered_bytes_per_step"] >= told["base_bytes"] / 2 * 0.95
    found, alone = vectors(started[name]), vectors(started["alone"])
    assert found.keys() == alone.keys()
    for site, wanted in alone.items():
        assert (found[site] - wanted).norm() / wanted.norm() < 1e-5, site


def test_the_run_is_the_same_whatever_started_it(started: dict[str, Path]) -> None:
    first, *others = STARTS
    wanted, told = vectors(started[first]), placement(started[first])
    for name in others:
        found = vectors(started[name])
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[site], vector) for site, vector in wanted.items()), name
        assert placement(started[name]) == told
