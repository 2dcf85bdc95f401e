"""Small runs of every method, and of all that orders clips, by the commands of the tree on the path.

    PYTHONPATH=TREE:TREE/tests python tools/tiny_runs.py make DATA              a tiny base and shards
    PYTHONPATH=TREE:TREE/tests python tools/tiny_runs.py run DATA FOLDER NAMES…

Only what stays as it is from commit to commit is used: commands, config keys and `tests/tiny.py`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

STEPS = 8
TWO: list[dict[str, Any]] = [{"name": "bg", "language": "bg"}, {"name": "el", "language": "el"}]
MANY: list[dict[str, Any]] = [
    {"name": "bg", "language": "bg", "sites": "encoder+llm"},
    {"name": "el", "language": "el", "sites": "encoder:last-half", "rule": "add", "steps": 5},
    {"name": "both", "language": ["bg", "el"], "mix": {"temperature": 3}, "sites": "llm", "seed": 5},
]
RATES: list[dict[str, Any]] = [
    {"name": f"bg-{lr}", "language": "bg", "sites": "encoder:1-2", "lr": lr} for lr in (0.01, 0.1)
]
# Sections that differ from those of `_config`.
RUNS: dict[str, dict[str, Any]] = {
    "packed": {"training": {"clip_norm": 0.3, "lr_scale": {"llm": 0.5}, "warmup": 0.3, "dev_clips": 3}},
    "add": {"adapters": TWO, "steering": {"rule": "add"}, "training": {"decay": "none"}},
    "drawn": {
        "data": {
            "seconds_per_step": 5.0,
            "join_clips": 3,
            "augment": {"speed": [0.9, 1.1], "noise_db": [10, 30], "time_masks": 1},
        },
        "training": {"silence_stride": 4},
    },
    "halving": {
        "adapters": RATES,
        "training": {"dev_clips": 4, "halving": {"rungs": [3]}, "prefix_cache": "memory"},
    },
    "lora": {"adapters": TWO, "method": {"kind": "lora", "rank": 2}},
    "bias": {"adapters": TWO, "method": {"kind": "bias"}},
    "mean-difference": {
        "adapters": TWO[1:],
        "method": {"kind": "mean-difference", "contrast": "bg", "clips": 6},
    },
    "in-context": {"adapters": TWO, "method": {"kind": "in-context", "examples": 1}},
    "sharded": {"placement": {"kind": "full"}},
}
EVALUATED = ("packed", "lora", "mean-difference", "in-context")


def _config(data: Path, folder: Path, sections: dict[str, Any]) -> Path:
    tree = {
        "run": str(folder),
        "base": {"name": str(data / "base")},
        "adapters": MANY,
        "evaluation": {"batch": 4, "max_new_tokens": 8, "clips": 4},
        "trackers": [],
        **sections,
        "data": {"shards": str(data / "shards"), "readers": 4, **sections.get("data", {})},
        "training": {"steps": STEPS, "lr": 0.02, **sections.get("training", {})},
    }
    if "seconds_per_step" not in tree["data"]:
        tree["data"]["clips_per_step"] = 5
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _command(*words: str) -> None:
    """A command of the tree's, in this process: torch is imported once for all runs."""
    with mock.patch.object(sys, "argv", ["salsa-dist", *words]):
        try:
            runpy.run_module("salsa_dist", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def _on_two_ranks(*words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "-m", "salsa_dist"]
    subprocess.run([*command, *words], check=True)


def main() -> None:
    """See above."""
    import salsa_dist

    tree = os.environ["PYTHONPATH"].split(os.pathsep)[0]
    assert Path(salsa_dist.__file__).is_relative_to(tree), salsa_dist.__file__
    verb, data = sys.argv[1], Path(sys.argv[2])
    if verb == "make":
        import tiny

        tiny.make_base(data / "base")
        tiny.make_shards(data / "shards")
        return
    folder = Path(sys.argv[3])
    folder.mkdir()
    for name in sys.argv[4:]:
        config = str(_config(data, folder / name, RUNS[name]))
        if name == "sharded":
            _on_two_ranks("train", config)
        elif name != "in-context":
            _command("train", config)
        if name in EVALUATED:
            _command("evaluate", config)


if __name__ == "__main__":
    main()
