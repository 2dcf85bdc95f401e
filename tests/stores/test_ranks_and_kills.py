"""Ranks that train from a bucket end with the vectors of a folder, to the bit: cold and warm, with
workers and without, in one piece and killed. What ranks of a node read is fetched once."""

from __future__ import annotations

from pathlib import Path

import pytest
import resumed
from ranks import run_ranks
from run_results import events
from safetensors.numpy import load_file
from tiny import make_config
from web import Proxy

from salsa_dist.corpus.upload import upload
from salsa_dist.data.index import ShardIndex
from salsa_dist.places import Remote

STEPS, KILLED = 12, 6  # of 5 clips; an epoch of a language is 24
TRAINING = {"steps": STEPS, "lr": 0.02, "save_every_s": 0, "keep": STEPS}
Vectors = dict[str, bytes]


def train(ranks: int, folder: Path, *configs: Path) -> None:
    done = run_ranks(ranks, resumed.__file__, *configs, folder=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def vectors(run: Path) -> Vectors:
    return {
        f"{path.parent.name} {name}": value.tobytes()
        for path in sorted(run.glob("adapters/*/adapter.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.mark.parametrize(("ranks", "workers"), [(1, (0, 2, 0)), (2, (2, 0, 2))])
def test_the_vectors_of_a_folder_and_each_byte_fetched_once_a_node(
    ranks: int,
    workers: tuple[int, int, int],
    s3: Proxy,
    tiny_base: Path,
    tiny_shards: Path,
    tmp_path: Path,
) -> None:
    # Killed and the others read copies of their own, so that what is fetched can be told apart.
    shards = {"folder": str(tiny_shards)}
    for name, names in (("killed", ["killed"]), ("whole", ["cold", "warm"])):
        bucket = Remote(f"s3://tests/{tmp_path.name}/{name}")
        upload(tiny_shards, bucket)
        shards |= dict.fromkeys(names, str(bucket))
    s3.delay_s = 0.005
    configs = {}
    for name, own in {
        "folder": 0,
        **dict(zip(("cold", "warm", "killed"), workers, strict=True)),
    }.items():
        (tmp_path / name).mkdir()
        data = {"shards": shards[name], "clips_per_step": 5, "readers": 4, "workers": own}
        configs[name] = make_config(
            tmp_path / name, tiny_base, tiny_shards, data=data, training=TRAINING
        )
    run_ranks(ranks, resumed.__file__, "--kill", str(KILLED), configs["killed"], folder=tmp_path)
    assert not (tmp_path / "killed/run/adapters").exists()
    # One start of the ranks for all, which takes longer than the steps.
    train(ranks, tmp_path, configs["killed"], configs["folder"], configs["cold"], configs["warm"])
    of_folder = vectors(tmp_path / "folder/run")
    assert of_folder
    for name in ("cold", "warm", "killed"):
        assert vectors(tmp_path / name / "run") == of_folder, name
    begun = [e["resumed_step"] for e in events(tmp_path / "killed/run") if e["event"] == "start"]
    assert begun == [0, KILLED]
    size = sum(s.bytes for s in ShardIndex.load(tiny_shards).shards if s.split == "train")
    assert 0.95 * size <= fetched(s3, "whole") <= 1.05 * size
    # The second process finds what the first one fetched, but for answers that it died with.
    assert 0.95 * size <= fetched(s3, "killed") <= 1.3 * size
    told = {
        name: [e["store"] for e in events(tmp_path / name / "run") if e["event"] == "step"]
        for name in ("cold", "warm")
    }
    # The rest came for what is asked before the first step, or ahead, after the last.
    assert 0 < sum(t["fetched_bytes"] for t in told["cold"]) <= fetched(s3, "whole")
    assert sum(t["fetched_bytes"] for t in told["warm"]) == 0
    assert sum(t["cached_bytes"] for t in told["warm"]) > 0


def fetched(proxy: Proxy, name: str) -> int:
    """Bytes of shards below `name`."""
    return sum(x.body_bytes for x in proxy.log.seen if x.of_shard and f"/{name}/" in x.path)
