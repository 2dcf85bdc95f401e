"""A run on shards of a store ends with the vectors of the run on a folder, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from test_names import main
from tiny import make_config
from web import Proxy, Web

from salsa_dist import load_config, train
from salsa_dist.data import shard_cache

TRAINING = {"steps": 4, "lr": 0.02, "save_every_s": 0}


def vectors(run: Path) -> dict[str, bytes]:
    return {
        f"{path.parent.name} {name}": value.tobytes()
        for path in sorted(run.glob("adapters/*/adapter.safetensors"))
        for name, value in load_file(path).items()
    }


def test_the_same_vectors_cold_and_warm_with_workers_and_without(
    tiny_base: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    web = Web(tiny_shards.parent)
    proxy = Proxy(web.port, 0.005)
    remote = f"{proxy.url}/{tiny_shards.name}"
    found = {}
    for name, shards, workers in (
        ("folder", str(tiny_shards), 0),
        ("cold", remote, 0),
        ("warm", remote, 2),
    ):
        (tmp_path / name).mkdir()
        data = {"shards": shards, "clips_per_step": 5, "readers": 4, "workers": workers}
        data["cache"] = str(tmp_path / "shared")
        config = make_config(tmp_path / name, tiny_base, tiny_shards, data=data, training=TRAINING)
        before = proxy.log.body_bytes
        shard_cache._caches.clear()
        assert train(load_config(config)).finished
        found[name] = vectors(tmp_path / name / "run")
        assert (proxy.log.body_bytes > before) == (name == "cold")
    assert found["folder"]
    assert found["folder"] == found["cold"] == found["warm"]
    events = (tmp_path / "cold/run/events.jsonl").read_text().splitlines()
    steps = [e["store"] for e in map(json.loads, events) if e["event"] == "step"]
    assert sum(s["requests"] for s in steps) > 0
    assert sum(s["fetched_bytes"] for s in steps) > 0
    assert remote in (tmp_path / "cold/run/config.yaml").read_text()
    proxy.close()
    web.close()


def test_a_cache_that_cannot_be_written_stops_it_before_the_base_is_read(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web = Web(tiny_shards.parent)
    (tmp_path / "file").touch()
    config = make_config(tmp_path, tmp_path / "no-base", tiny_shards)
    words = [f"data.shards={web.url}/{tiny_shards.name}", f"data.cache={tmp_path / 'file'}"]
    assert main(["train", str(config), *words]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "can't be kept in" in said or "can't be written" in said
    assert not (tmp_path / "run/events.jsonl").exists()
    web.close()
