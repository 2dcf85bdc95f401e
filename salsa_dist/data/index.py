"""`index.json`: the content of a folder of tar shards, with the byte range of every sample.

    folder/
    ├── index.json                 all of it; what counts
    ├── index.columns              the same for quick loading, see `quick_index.py`; may be missing
    ├── bg/train-000000.tar …      LANGUAGE/SPLIT-NUMBER.tar
    └── el/test-000000.tar

    ShardIndex ── name, sample_rate (Hz), seed, recipe (free facts about how it was built), hash
      └── shards: Shard ── path, split, language, samples, seconds, bytes, sha256
            └── entries: Entry ── key, seconds, offset, length (bytes in the tar)

A reader that wants one sample seeks to `offset` and reads `length` bytes; it never scans a tar.
`hash` is the sha256 over the list of (path, sha256) of all shards: it names the data, not the recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from salsa_dist.data import quick_index
from salsa_dist.data.entries import Columns, Entries, Entry
from salsa_dist.data.index_copy import local_copy
from salsa_dist.errors import UserError
from salsa_dist.json_file import first_problem
from salsa_dist.places import Folder, Remote, place

__all__ = ["FILE", "SCHEMA", "Entry", "Shard", "ShardIndex"]

SCHEMA = "salsa-dist/shards/1"
FILE = "index.json"
_MOST = 1 << 62  # bytes; keeps sums of two within 64 bit


@dataclass(frozen=True)
class Shard:
    """One tar file; all its samples are of one language and one split."""

    path: str
    split: str
    language: str
    samples: int
    seconds: float
    bytes: int
    sha256: str
    entries: Sequence[Entry]


@dataclass(frozen=True)
class ShardIndex:
    """All shards in `folder`, in the order of their paths."""

    folder: Folder
    name: str
    sample_rate: int
    seed: int
    recipe: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def hash(self) -> str:
        pairs = [[shard.path, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def select(self, split: str, language: str) -> list[Shard]:
        """The shards of `split` in `language`; none at all is a mistake of the caller's."""
        found = [s for s in self.shards if s.split == split and s.language == language]
        if not found:
            there: dict[str, set[str]] = {}
            for shard in self.shards:
                there.setdefault(shard.language, set()).add(shard.split)
            known = "; ".join(f"{lang}: {', '.join(sorted(s))}" for lang, s in sorted(there.items()))
            raise UserError(
                f"{self.folder / FILE} has no {split!r} shards in {language!r}; it has {known}"
            )
        return found

    def save(self, folder: Path) -> None:
        """Write `folder/index.json`, one shard per line."""
        head = {
            "schema": SCHEMA,
            "name": self.name,
            "sample_rate": self.sample_rate,
            "seed": self.seed,
            "recipe": self.recipe,
            "hash": self.hash,
        }
        _no_twice(self, [entry.key for shard in self.shards for entry in shard.entries])
        heads = [_head(shard) for shard in self.shards]
        lines = []
        for tree, shard in zip(heads, self.shards, strict=True):
            entries = [[e.key, e.seconds, e.offset, e.length] for e in shard.entries]
            lines.append("    " + json.dumps({**tree, "entries": entries}, ensure_ascii=False))
        text = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
        text += ',\n  "shards": [\n' + ",\n".join(lines) + "\n  ]\n}\n"
        (folder / FILE).write_text(text, encoding="utf-8")
        columns = Columns.of([entry for shard in self.shards for entry in shard.entries])
        quick_index.write(folder, FILE, {**head, "shards": heads}, columns)

    @classmethod
    def load(cls, folder: str | Folder) -> ShardIndex:
        """Read and check `folder/index.json`; the shards themselves are not opened."""
        folder = place(folder)
        path = folder / FILE
        here = local_copy(folder, FILE, quick_index.FILE) if isinstance(folder, Remote) else folder
        try:
            found = quick_index.read(here, FILE)
            if found is not None:
                return _checked(folder, *found)
            tree = json.loads((here / FILE).read_text(encoding="utf-8"))
        except OSError as e:
            raise UserError(
                f"{path} can't be read ({e.strerror}): name a folder of shards, or build one with "
                "'salsa-dist shards build'"
            ) from e
        except (ValueError, RecursionError) as e:
            raise _damaged(path, str(e)) from e
        entries = _take_entries(tree, path)
        try:
            index = _checked(folder, tree, Columns.of(entries))
        except (ValueError, OverflowError) as e:
            raise _damaged(path, str(e)) from e
        _no_twice(index, [entry.key for entry in entries])
        return index


class _RawShard(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    path: str
    split: str
    language: str
    samples: int
    seconds: float
    bytes: int
    sha256: str


class _RawIndex(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    sample_rate: int
    seed: int
    recipe: dict[str, Any]
    hash: str
    shards: list[_RawShard]


def _damaged(path: Folder, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}): build the shards again")


def _head(shard: Shard) -> dict[str, Any]:
    """A shard without its entries, as JSON."""
    return {f.name: getattr(shard, f.name) for f in fields(shard) if f.name != "entries"}


def _take_entries(tree: Any, path: Folder) -> list[Entry]:
    """The entries of all shards, which are taken out of `tree`. Raises: UserError: they are none."""
    shards = tree.get("shards") if isinstance(tree, dict) else None
    found: list[Entry] = []
    for shard in shards if isinstance(shards, list) else ():
        if not isinstance(shard, dict):
            continue  # said when the tree is checked
        items = shard.pop("entries", None)
        if not isinstance(items, list):
            raise _damaged(path, f"{shard.get('path')} has no list of entries")
        for item in items:
            match item:
                case [str(key), float() | int() as seconds, int(offset), int(length)]:
                    found.append(Entry(key, float(seconds), offset, length))
                case _:
                    raise _damaged(path, f"{shard.get('path')} has the entry {str(item)[:80]}")
        shard.setdefault("samples", None)
        if shard["samples"] != len(items):
            raise _damaged(path, f"{shard.get('path')}: its entries don't fit its samples or bytes")
    return found


def _checked(folder: Folder, tree: Any, columns: Columns) -> ShardIndex:
    """An index made of a tree without entries, and of all entries. Raises: UserError."""
    path = folder / FILE
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path} has the schema {schema!r}, and this version reads {SCHEMA!r}: build the "
            "shards again"
        )
    try:
        raw = _RawIndex.model_validate({k: v for k, v in tree.items() if k != "schema"})
    except ValidationError as e:
        raise _damaged(path, first_problem(e)) from e
    if raw.sample_rate < 0 or not raw.shards:
        raise _damaged(path, "it has no shards or no sample rate")
    for shard in raw.shards:
        inside = PurePosixPath(shard.path)
        if inside.is_absolute() or ".." in inside.parts or "\\" in shard.path or not inside.parts:
            raise UserError(
                f"{path} names {shard.path!r}, which is outside its folder: don't use this index"
            )
    _check_columns(raw.shards, columns, path)
    stops = np.cumsum([shard.samples for shard in raw.shards]).tolist()
    shards = tuple(
        Shard(**dict(shard), entries=Entries(columns, stop - shard.samples, stop))
        for shard, stop in zip(raw.shards, stops, strict=True)
    )
    index = ShardIndex(folder, raw.name, raw.sample_rate, raw.seed, raw.recipe, shards)
    if len({shard.path for shard in shards}) < len(shards):
        raise _damaged(path, "a shard is there twice")
    if index.hash != raw.hash:
        raise _damaged(path, "its hash is not that of its list of shards")
    return index


def _check_columns(shards: Sequence[_RawShard], columns: Columns, path: Folder) -> None:
    """Check that entries have lengths, follow each other, and are inside their shards."""
    counts = np.array([shard.samples for shard in shards])
    if (counts < 0).any() or counts.sum() != len(columns.seconds):
        raise _damaged(path, "its entries don't fit its samples or bytes")
    stops = np.cumsum(counts)
    seconds, offsets, lengths = columns.seconds, columns.offsets, columns.lengths
    sound = (lengths > 0) & (lengths < _MOST) & (offsets < _MOST)
    sound &= (seconds > 0) & np.isfinite(seconds)
    ends = np.where(sound, offsets + np.where(sound, lengths, 0), 0)
    before = np.zeros_like(ends)
    before[1:] = ends[:-1]
    before[(stops - counts)[counts > 0]] = 0
    sound &= offsets >= before
    if not sound.all():
        at = int(np.argmin(sound))
        shard = shards[int(np.searchsorted(stops, at, side="right"))]
        entry = Entries(columns, at, at + 1)[0]
        what = [entry.key, entry.seconds, entry.offset, entry.length]
        raise _damaged(path, f"{shard.path} has the impossible entry {str(what)[:80]}")
    for shard, count, stop in zip(shards, counts.tolist(), stops.tolist(), strict=True):
        if count and ends[stop - 1] > shard.bytes:
            raise _damaged(path, f"{shard.path}: its entries don't fit its samples or bytes")


def _no_twice(index: ShardIndex, keys: Sequence[str]) -> None:
    """Refuse an index with a key or a path that is there twice."""
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise _damaged(index.folder / FILE, f"{key!r} is there twice")
        seen.add(key)
