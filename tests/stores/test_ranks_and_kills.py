"""Ranks that train from a bucket end with the vectors of a folder, to the bit: cold and warm, with
workers and without, in one piece and killed. What ranks of a node read is fetched once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resumed
from safetensors.numpy import load_file
from tiny import make_config
from web import Proxy

from salsa_dist.corpus.upload import upload
from salsa_dist.data.index import ShardIndex
from salsa_dist.places import Remote

STEPS = 12  # of 5 clips; an epoch of a language is 24
TRAINING = {"steps": STEPS, "lr": 0.02, "save_every_s": 0, "keep": STEPS}
Vectors = dict[str, bytes]


def run(ranks: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`resumed.py`, on so many ranks."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    return subprocess.run(
        [*command, resumed.__file__, *map(str, words)], capture_output=True, text=True, timeout=500
    )


def train(ranks: int, config: Path) -> None:
    done = run(ranks, config)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def vectors(run: Path) -> Vectors:
    return {
        f"{path.parent.name} {name}": value.tobytes()
        for path in sorted(run.glob("adapters/*/adapter.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def of_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path
) -> Callable[[int], Vectors]:
    """What so many ranks make of the shards in a folder."""
    found: dict[int, Vectors] = {}

    def trained(ranks: int) -> Vectors:
        if ranks not in found:
            folder = tmp_path_factory.mktemp("folder")
            train(ranks, make_config(folder, tiny_base, tiny_shards, training=TRAINING))
            found[ranks] = vectors(folder / "run")
            assert found[ranks]
        return found[ranks]

    return trained


@pytest.fixture
def bucket(s3: Proxy, tiny_shards: Path, tmp_path: Path) -> Remote:
    place = Remote(f"s3://tests/{tmp_path.name}")
    upload(tiny_shards, place)
    s3.delay_s = 0.005
    return place


def config_of(folder: Path, base: Path, bucket: Remote, workers: int) -> Path:
    data = {"shards": str(bucket), "clips_per_step": 5, "readers": 4, "workers": workers}
    return make_config(folder, base, Path(), data=data, training=TRAINING)


def fetched_of_shards(proxy: Proxy) -> int:
    return sum(seen.body_bytes for seen in proxy.log.seen if seen.of_shard)


@pytest.mark.parametrize(("ranks", "workers"), [(1, (0, 2)), (2, (2, 0))])
def test_the_vectors_of_a_folder_and_each_byte_fetched_once_a_node(
    ranks: int,
    workers: tuple[int, int],
    s3: Proxy,
    bucket: Remote,
    of_folder: Callable[[int], Vectors],
    tiny_base: Path,
    tiny_shards: Path,
    tmp_path: Path,
) -> None:
    fetched = {}
    for name, own in zip(("cold", "warm"), workers, strict=True):
        (tmp_path / name).mkdir()
        before = fetched_of_shards(s3)
        train(ranks, config_of(tmp_path / name, tiny_base, bucket, own))
        fetched[name] = fetched_of_shards(s3) - before
        assert vectors(tmp_path / name / "run") == of_folder(ranks)
    sizes = [shard.bytes for shard in ShardIndex.load(tiny_shards).shards if shard.split == "train"]
    assert 0.95 * sum(sizes) <= fetched["cold"] <= 1.05 * sum(sizes)
    assert fetched["warm"] == 0
    told = [e["store"] for e in events(tmp_path / "cold/run") if e["event"] == "step"]
    # The rest came for what is asked before the first step, or ahead, after the last.
    assert 0 < sum(t["fetched_bytes"] for t in told) <= fetched["cold"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2)])
def test_killed_twice_it_goes_on_from_the_bucket(
    ranks: int,
    workers: int,
    bucket: Remote,
    of_folder: Callable[[int], Vectors],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, tiny_base, bucket, workers)
    cuts = (3, 6)
    for step in cuts:
        run(ranks, "--kill", str(step), config)
        assert not (tmp_path / "run/adapters").exists()
    train(ranks, config)
    begun = [e["resumed_step"] for e in events(tmp_path / "run") if e["event"] == "start"]
    assert begun == [0, *cuts]
    assert vectors(tmp_path / "run") == of_folder(ranks)
