"""The demo's path from training to the report, on a tiny base and by the real launcher."""

import json
import subprocess
import sys
from pathlib import Path

from tiny import make_config

REPOSITORY = Path(__file__).parents[2]


def test_demo_job_on_a_tiny_base(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    strict = tmp_path / "strict.json"
    strict.write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    config = make_config(
        tmp_path,
        tiny_base,
        tiny_shards,
        placement={"kind": "full", "ds_config": str(strict)},
        base={"name": str(tiny_base), "window_s": 1.9},
        evaluation={"windows_s": [2, 1.9], "batch": 4, "max_new_tokens": 8},
    )
    program = "import sys, run; print(run.run_job(sys.argv[1], sys.argv[2:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(config), "training.steps=8"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**__import__("os").environ, "PYTHONPATH": str(REPOSITORY / "demo")},
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 8/8" in done.stdout  # progress is shown
    assert "placement full as measured: 2 ranks, 2 share a copy" in done.stdout
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    assert report["schema"] == "salsa-dist/report/1"
    assert report["training"]["steps"] == 8
    placement = report["placement"]
    assert placement["world_size"] == placement["group_size"] == 2
    half = placement["base_bytes"] / 2
    assert placement["resident_bytes_between_steps"] <= half + placement["threshold_bytes"] + 4096
    assert placement["gathered_bytes_per_step"] >= 0.95 * half
    assert 0 < placement["reduced_bytes_per_step"] < 4 * 2 * 6 * 32 * 4
    rows = {(r["language"], r["method"], r["window_s"]) for r in report["results"]}
    assert rows == {
        (lang, m, w) for lang in ("bg", "el") for m in ("zero-shot", "salsa") for w in (2, 1.9)
    }
    assert all(r["utterances"] == 6 for r in report["results"])
    assert {(a["name"], a["trained_parameters"]) for a in report["adapters"]} == {
        ("bg", 192),
        ("el", 192),
    }
    assert (run / "report.html").read_text().startswith("<!doctype html>")
