"""The index: it survives a round trip, and every damage is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from salsa_dist.data.index import FILE, Entry, Shard, ShardIndex
from salsa_dist.errors import UserError


def example(folder: Path) -> ShardIndex:
    def shard(language: str, split: str) -> Shard:
        entries = (
            Entry(f"{language}/{split}/a", 1.5, 0, 1024),
            Entry(f"{language}/b{split}", 1, 1024, 512),
        )
        path = f"{language}/{split}-000000.tar"
        return Shard(path, split, language, 2, 2.5, 10_240, "ab" * 32, entries)

    shards = (shard("bg", "test"), shard("bg", "train"), shard("el", "train"))
    return ShardIndex(folder, "corpus", 16_000, 3, {"source": "дума"}, shards)


def test_round_trip(tmp_path: Path) -> None:
    index = example(tmp_path)
    index.save(tmp_path)
    again = ShardIndex.load(tmp_path)
    assert again == index
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["hash"] == again.hash


def test_select(tmp_path: Path) -> None:
    index = example(tmp_path)
    assert [s.path for s in index.select("train", "el")] == ["el/train-000000.tar"]
    with pytest.raises(UserError, match=r"no 'test' shards in 'el'.*bg: test, train; el: train"):
        index.select("test", "el")


def test_the_hash_names_the_data(tmp_path: Path) -> None:
    index = example(tmp_path)
    other = ShardIndex(tmp_path, "corpus", 16_000, 3, {}, index.shards[:2])
    assert index.hash != other.hash
    assert ShardIndex(Path("else"), "x", 16_000, 0, {}, index.shards).hash == index.hash


def damage(tmp_path: Path, **changes: Any) -> None:
    """Save the example with `path.to.key=value` changed (a number steps into a list)."""
    example(tmp_path).save(tmp_path)
    tree = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        node = tree
        *parents, last = (int(p) if p.isdigit() else p for p in dotted.split("__"))
        for part in parents:
            node = node[part]
        node[last] = value
    (tmp_path / FILE).write_text(json.dumps(tree), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": "salsa-dist/shards/2"}, "salsa-dist/shards/2"),
        ({"shards__0__path": "../evil.tar"}, "leaves its folder"),
        ({"shards__0__path": "/etc/evil.tar"}, "leaves its folder"),
        ({"shards__0__path": "a\\..\\evil.tar"}, "leaves its folder"),
        ({"shards__0__sha256": "cd" * 32}, "hash"),
        ({"shards__0__entries__1__2": 100}, "impossible entry"),  # overlaps the one before
        ({"shards__0__entries__1__3": 20_000}, "don't fit"),  # ends behind the tar
        ({"shards__0__entries__0__1": float("nan")}, "impossible entry"),
        ({"shards__0__entries__0__1": -1.0}, "impossible entry"),
        ({"shards__0__entries__0": ["key"]}, "has the entry"),
        ({"shards__0__samples": 3}, "don't fit"),
        ({"shards__0__entries__0__0": "bg/btest"}, "twice"),
        ({"shards__0__split": 7}, "shards.0.split"),
        ({"shards": []}, "no shards"),
        ({"sample_rate": "16000"}, "sample_rate"),
    ],
)
def test_damage_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    damage(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        ShardIndex.load(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_what_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        ShardIndex.load(tmp_path)


def test_a_missing_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shards build"):
        ShardIndex.load(tmp_path)
