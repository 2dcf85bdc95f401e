"""Shards are copied to a node's disk once, whole or not at all, and read from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny import make_config

from salsa_dist import SteeringVectors, UserError, load_config, train
from salsa_dist.data.index import ShardIndex


def run(
    tmp_path: Path, base: Path, shards: Path, name: str, *overrides: str
) -> dict[str, torch.Tensor]:
    config = load_config(make_config(tmp_path, base, shards), [f"run={tmp_path / name}", *overrides])
    train(config)
    return SteeringVectors.load(tmp_path / name / "adapters/bg").vectors


def test_training_reads_the_copies_and_learns_the_same(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    stage = "data.stage_to=$NODE_DISK"
    plain = run(tmp_path, tiny_base, shards, "plain")
    run(tmp_path, tiny_base, shards, "first", stage, "training.steps=1")
    (copy,) = (tmp_path / "disk").iterdir()
    train_shards = {s.path for s in ShardIndex.load(shards).shards if s.split == "train"}
    assert {str(p.relative_to(copy)) for p in copy.rglob("*.*")} == train_shards

    torn = copy / sorted(train_shards)[0]
    torn.write_bytes(b"torn")
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.tar")}
    for path in train_shards:  # only the torn one is read again
        if copy / path != torn:
            (shards / path).unlink()
    staged = run(tmp_path, tiny_base, shards, "staged", stage)
    for site, vector in plain.items():
        assert torch.equal(staged[site], vector), site
    assert {p for p, time in before.items() if p.stat().st_mtime_ns != time} == {torn}


def test_a_damaged_source_leaves_no_copy(tmp_path: Path, tiny_base: Path, tiny_shards: Path) -> None:
    shards = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    shard = next(s for s in ShardIndex.load(shards).shards if s.split == "train")
    raw = bytearray((shards / shard.path).read_bytes())
    raw[700] ^= 1
    (shards / shard.path).write_bytes(raw)
    with pytest.raises(UserError, match="is not what its index"):
        run(tmp_path, tiny_base, shards, "run", f"data.stage_to={tmp_path / 'disk'}")
    assert not [p for p in (tmp_path / "disk").rglob("*.*") if p.is_file()]
    with pytest.raises(UserError, match="not set on this node"):
        run(tmp_path, tiny_base, tiny_shards, "run", "data.stage_to=$NO_SUCH_DISK")
