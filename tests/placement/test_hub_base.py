"""A base by its hub name: fetched by one rank of a node, and used from the cache without a network."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, hub
from ranks import two_ranks
from tiny import make_config

TRAINS = """
import os, sys
config, hub, cache, offline = sys.argv[1:]
os.environ |= {"HF_ENDPOINT": hub, "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1"}
os.environ.pop("HF_HUB_CACHE", None)
if offline == "offline":
    os.environ["HF_HUB_OFFLINE"] = "1"
from salsa_dist.cli import run_command
run_command("train+evaluate", config, [])
"""


def runs(folder: Path, base: str, shards: Path, address: str, cache: Path, network: str) -> str:
    """Trains and evaluates on two ranks of one node; the revision that the run names."""
    folder.mkdir()
    evaluation = {"windows_s": [None], "batch": 8, "max_new_tokens": 4, "clips": 2}
    sections = {"base": {"name": base}, "evaluation": evaluation}
    config = make_config(folder, folder, shards, training={"steps": 2}, **sections)
    with two_ranks(folder, TRAINS, str(config), address, str(cache), network, fresh=True) as both:
        statuses = [process.wait(timeout=500) for process in both]
    assert statuses == [0, 0], [(folder / f"log-{rank}").read_text() for rank in (0, 1)]
    events = (folder / "run" / "events.jsonl").read_text().splitlines()
    start = next(e for e in map(json.loads, events) if e["event"] == "start")
    return str(start["base"]["revision"])


@pytest.mark.timeout(1100)
def test_one_rank_fetches_and_then_no_network_is_needed(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    cache = tmp_path / "cache"
    with hub("org/tiny", tiny_base) as (address, asked):
        online = runs(tmp_path / "online", "org/tiny", tiny_shards, address, cache, "online")
        gets = Counter(word for word in asked if word.startswith("GET") and word != "GET api")
        # The headers of the weights alone are read for the plan, then the file once, by one rank.
        assert gets["GET config.json"] == 1, gets
        assert gets["GET model.safetensors"] <= 3, gets
        asked.clear()
        offline = runs(tmp_path / "offline", "org/tiny", tiny_shards, address, cache, "offline")
        assert asked == []
    assert online == offline == COMMIT
