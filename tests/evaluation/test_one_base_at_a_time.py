"""A process holds one base at a time: what was loaded before is gone when the next is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from tiny import make_base, make_config

HERE = Path(__file__).parent
PLACEMENTS: dict[str, dict[str, Any]] = {
    "replicate": {"kind": "replicate"},
    "full": {"kind": "full"},
    "offloaded": {"kind": "replicate", "offload": "cpu"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """Training, then evaluation at two windows, by each placement, in one launch of two ranks."""
    folder = tmp_path_factory.mktemp("bases")
    base = make_base(folder / "base", d_model=128)
    configs = []
    for name, placement in PLACEMENTS.items():
        (folder / name).mkdir()
        evaluation = {"windows_s": [None, 1.9], "batch": 8, "max_new_tokens": 4, "clips": 3}
        sections: dict[str, Any] = {
            "evaluation": {**evaluation, "forgetting": True, "placement": placement},
            "placement": placement,
            "training": {"steps": 4},
        }
        configs.append(str(make_config(folder / name, base, tiny_shards, **sections)))
    done = run_ranks(2, HERE / "base_after_base.py", folder, *configs, folder=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", PLACEMENTS)
def test_no_base_is_left_when_the_next_is_loaded(out: Path, name: str) -> None:
    size = (out / "base" / "model.safetensors").stat().st_size
    for rank in (0, 1):
        loads = json.loads((out / f"{name}-rank-{rank}.json").read_text())
        assert len(loads) == 5  # training; with no adapters beside it and with them, at each window
        assert [load["models"] for load in loads] == [0] * 5
        grown = max(load["bytes"] for load in loads) - loads[0]["bytes"]
        assert grown < size / 20, loads
