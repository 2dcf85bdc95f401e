"""`accelerate launch` runs the same training, really on two ranks and really sharded.

accelerate starts a single process, or turns ZeRO off, in silence when its config is not quite right; a
falling loss would not show it.
"""

import json
import subprocess
import sys
from pathlib import Path

from tiny import make_config

from salsa_dist import SteeringVectors, load_config, train

REPOSITORY = Path(__file__).parents[2]


def test_accelerate_launch_trains_sharded(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    strict = tmp_path / "strict.json"
    strict.write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    config = make_config(tmp_path, tiny_base, tiny_shards)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(REPOSITORY / "launchers/accelerate/cpu-2.yaml")]
    command += ["-m", "salsa_dist", "train", str(config), "placement.kind=full"]
    command += [f"placement.ds_config={strict}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(x) for x in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    (placement,) = (e for e in events if e["event"] == "placement")
    assert placement["world_size"] == placement["group_size"] == 2
    assert placement["resident_bytes_between_steps"] <= placement["base_bytes"] / 2 + 4096
    assert placement["gathered_bytes_per_step"] >= placement["base_bytes"] / 2 * 0.95

    alone = train(load_config(config, [f"run={tmp_path / 'alone'}"]))
    for path in alone.adapters:
        found = SteeringVectors.load(tmp_path / "run/adapters" / path.name).vectors
        for site, wanted in SteeringVectors.load(path).vectors.items():
            assert (found[site] - wanted).norm() / wanted.norm() < 1e-5, site
