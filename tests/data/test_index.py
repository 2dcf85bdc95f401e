"""The index: it survives a round trip, and every damage is refused with its place."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salsa_dist.data import quick_index
from salsa_dist.data.entries import Columns
from salsa_dist.data.file_hash import sha256_of, summed
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
        ({"shards__0__path": "../evil.tar"}, "is outside its folder"),
        ({"shards__0__path": "/etc/evil.tar"}, "is outside its folder"),
        ({"shards__0__path": "a\\..\\evil.tar"}, "is outside its folder"),
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


# The quick form beside it.


def only_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are made of nothing but the columns."""
    monkeypatch.setattr("salsa_dist.data.index._take_entries", lambda tree, path: pytest.fail("slow"))


def test_both_forms_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = example(tmp_path)
    index.save(tmp_path)
    columns = (tmp_path / quick_index.FILE).read_bytes()
    (tmp_path / quick_index.FILE).unlink()  # as in folders of earlier versions
    slow = ShardIndex.load(tmp_path)
    (tmp_path / quick_index.FILE).write_bytes(columns)
    only_quick(monkeypatch)
    quick = ShardIndex.load(tmp_path)
    assert quick == slow == index
    for shard, same in zip(quick.shards, index.shards, strict=True):
        assert tuple(shard.entries) == same.entries
        assert [shard.entries[i] for i in (-1, 0)] == [same.entries[-1], same.entries[0]]
        assert len(shard.entries) == 2
        with pytest.raises(IndexError):
            shard.entries[2]


def test_columns_are_the_same_bytes_whenever_they_are_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        example(tmp_path / name).save(tmp_path / name)
    assert len({(tmp_path / name / quick_index.FILE).read_bytes() for name in ("a", "b")}) == 1


def test_a_changed_index_outdates_its_columns(tmp_path: Path) -> None:
    damage(tmp_path, shards__0__entries__0__0="another")
    assert ShardIndex.load(tmp_path).shards[0].entries[0].key == "another"


@pytest.mark.parametrize("cut", [0, 7, 100, -8])
def test_damaged_columns_are_passed_over(tmp_path: Path, cut: int) -> None:
    index = example(tmp_path)
    index.save(tmp_path)
    path = tmp_path / quick_index.FILE
    path.write_bytes(path.read_bytes()[:cut])
    assert ShardIndex.load(tmp_path) == index


def quick_with(folder: Path, head: dict[str, Any] | None = None, **changes: Any) -> None:
    """The example, its columns changed by hand but said to be of its index.json."""
    index = example(folder)
    index.save(folder)
    found = quick_index.read(folder, FILE)
    assert found is not None
    tree, columns = found
    tree["shards"][0] |= head or {}
    quick_index.write(folder, FILE, tree, replace(columns, **changes))


FORGED = {
    "seconds": np.array([1.5, np.nan, 1.5, 1, 1.5, 1]),
    "offsets": np.array([0, 1024, 0, 1023, 0, 1024]),
    "lengths": np.array([1024, 512, 1024, 512, -1, 512]),
}


@pytest.mark.parametrize("name", FORGED)
def test_impossible_columns_are_refused(tmp_path: Path, name: str) -> None:
    quick_with(tmp_path, **{name: FORGED[name]})
    with pytest.raises(UserError, match="impossible entry"):
        ShardIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({"path": "../evil.tar"}, "is outside its folder"),
        ({"samples": 3}, "don't fit"),
        ({"bytes": 1500}, "don't fit"),
        ({"sha256": "cd" * 32}, "hash"),
    ],
)
def test_forged_heads_are_refused(tmp_path: Path, head: dict[str, Any], says: str) -> None:
    quick_with(tmp_path, head)
    with pytest.raises(UserError, match=says):
        ShardIndex.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": np.ones(5)},
        {"seconds": np.ones((6, 1))},
        {"offsets": np.zeros(6, np.int32)},
        {"crc32": np.zeros(5, np.uint32)},
        {"crc32": np.zeros(6, np.int64)},
        {"keys": np.frombuffer(b"a\0b\0", np.uint8)},
        {"keys": np.frombuffer(b"a\0b\0c\0d\0e\0f", np.uint8)},
    ],
)
def test_columns_of_other_shapes_are_passed_over(tmp_path: Path, changes: dict[str, Any]) -> None:
    quick_with(tmp_path, **changes)
    assert ShardIndex.load(tmp_path) == example(tmp_path)


def test_sums_of_samples_lie_in_the_columns_alone(tmp_path: Path) -> None:
    """So index.json stays what earlier versions read."""
    index = example(tmp_path)
    index.save(tmp_path)
    text = (tmp_path / FILE).read_bytes()
    assert [e.crc32 for s in ShardIndex.load(tmp_path).shards for e in s.entries] == [None] * 6
    own = [[replace(e, crc32=(1 << 32) - i) for i, e in enumerate(s.entries, 1)] for s in index.shards]
    shards = tuple(replace(s, entries=tuple(x)) for s, x in zip(index.shards, own, strict=True))
    replace(index, shards=shards).save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == text
    found = [s.entries for s in ShardIndex.load(tmp_path).shards]
    assert [[e.crc32 for e in entries] for entries in found] == [[(1 << 32) - 1, (1 << 32) - 2]] * 3
    assert found[0][1].crc32 == (1 << 32) - 2
    (tmp_path / quick_index.FILE).unlink()
    assert ShardIndex.load(tmp_path).shards[0].entries[0].crc32 is None


def test_sums_are_those_of_the_bytes_wherever_a_sample_lies(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).bytes(3 << 20)
    (tmp_path / "tar").write_bytes(raw)
    mib = 1 << 20  # what one read takes
    spans = [(0, 7), (7, mib - 3), (mib - 3, mib + 5), (mib + 100, 2 * mib), (2 * mib + 1, 3 * mib - 1)]
    entries = [Entry(str(a), 1.0, a, b - a) for a, b in spans]
    sha256, found = summed(tmp_path / "tar", entries)
    assert sha256 == sha256_of(tmp_path / "tar")
    assert [e.crc32 for e in found] == [zlib.crc32(raw[a:b]) for a, b in spans]
    long = [Entry("all", 1.0, 1, 3 * mib - 2)]
    assert summed(tmp_path / "tar", long)[1][0].crc32 == zlib.crc32(raw[1:-1])


def test_keys_are_any_text(tmp_path: Path) -> None:
    entries = (Entry("дума/една.1", 1, 0, 8), Entry("", 1, 8, 8), Entry("x\ny", 2, 16, 8))
    shard = replace(example(tmp_path).shards[0], samples=3, entries=entries)
    index = replace(example(tmp_path), shards=(shard,))
    index.save(tmp_path)
    assert tuple(ShardIndex.load(tmp_path).shards[0].entries) == entries
    with pytest.raises(ValueError, match="zero byte"):
        Columns.of([Entry("a\0b", 1, 0, 8)])


def test_saving_a_key_twice_is_refused(tmp_path: Path) -> None:
    index = example(tmp_path)
    with pytest.raises(UserError, match="twice"):
        replace(index, shards=(index.shards[0], replace(index.shards[0], path="c.tar"))).save(tmp_path)
