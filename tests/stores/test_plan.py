"""`salsa-dist plan` tells the link to shards that a run needs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_names import main
from tiny import make_config
from web import Proxy, Rule, Web

from salsa_dist.data.index import ShardIndex
from salsa_dist.run.events import Events


def test_plan_tells_the_link_of_shards_in_a_store(
    tiny_base: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web = Web(tiny_shards.parent)
    config = make_config(tmp_path, tiny_base, tiny_shards)
    assert main(["plan", str(config), "--json"]) == 0
    assert "shards" not in json.loads(capsys.readouterr().out)
    tree = yaml.safe_load(config.read_text())
    tree["data"]["shards"] = f"{web.url}/{tiny_shards.name}"
    config.write_text(yaml.safe_dump(tree))
    plan = ["plan", str(config), "--nodes", "2", "--gpus-per-node", "1"]
    assert main([*plan, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    shards = [s for s in ShardIndex.load(tiny_shards).shards if s.split == "train"]
    mean = {x: [s for s in shards if s.language == x] for x in ("bg", "el")}
    step = sum(5 * sum(s.bytes for s in own) / sum(s.samples for s in own) for own in mean.values())
    assert planned["shards"]["bytes_per_step"] == round(step)
    assert planned["shards"]["step_s"] == planned["auto"]["step_s"]
    (tmp_path / "run").mkdir()
    events = Events(tmp_path / "run", True)
    for t, seconds in enumerate((9.0, 0.5, 0.5)):
        events.write("step", step=t, seconds=seconds)
    events.close()
    assert main([*plan, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["shards"]
    assert measured["measured"]
    assert measured["bytes_per_second_per_node"] == pytest.approx(step / 0.5 / 2)
    assert main(plan) == 0
    assert "with its measured 500 ms, a node needs" in capsys.readouterr().out
    web.close()


def test_a_plan_does_without_shards_that_cannot_be_reached(
    tiny_base: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web = Web(tiny_shards.parent)
    proxy = Proxy(web.port)
    config = make_config(tmp_path, tiny_base, tiny_shards)
    plan = ["plan", str(config), "--nodes", "1", "--gpus-per-node", "1"]
    assert main([*plan, "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)
    tree = yaml.safe_load(config.read_text())
    for name, rules, why in (
        (f"{proxy.url}/none", [], "has no index.json, or there is no such bucket"),
        (f"{proxy.url}/{tiny_shards.name}", [Rule("deny", lambda _: True, 99)], "access is denied"),
        ("http://127.0.0.1:9/x", [], "http://127.0.0.1:9/x/index.json can't be read"),
        ("gs://bucket/x", [], "pip install 'salsa-dist[gcs]'"),
    ):
        tree["data"]["shards"] = name
        config.write_text(yaml.safe_dump(tree))
        proxy.rules = rules
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "gcsfs", None)
            started = time.monotonic()
            assert main([*plan, "--json"]) == 0
        assert time.monotonic() - started < 60  # a run tries for two minutes
        shown = capsys.readouterr()
        assert json.loads(shown.out) == wanted
        [line] = shown.err.splitlines()
        assert line.startswith("the plan is without the link to shards: ")
        assert why in line
    proxy.close()
    web.close()
