"""`index.json`: what lies in a folder of tar shards, down to the byte range of every sample.

    folder/
    ├── index.json
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
import math
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from salsa_dist.errors import UserError

SCHEMA = "salsa-dist/shards/1"
FILE = "index.json"


@dataclass(frozen=True)
class Entry:
    """One sample: `seconds` of audio in bytes `[offset, offset + length)` of its shard."""

    key: str
    seconds: float
    offset: int
    length: int


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
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class ShardIndex:
    """All shards in `folder`, in the order of their paths."""

    folder: Path
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
        """Write `folder/index.json`, one shard a line."""
        head = {
            "schema": SCHEMA,
            "name": self.name,
            "sample_rate": self.sample_rate,
            "seed": self.seed,
            "recipe": self.recipe,
            "hash": self.hash,
        }
        lines = []
        for shard in self.shards:
            tree = asdict(shard)
            tree["entries"] = [[e.key, e.seconds, e.offset, e.length] for e in shard.entries]
            lines.append("    " + json.dumps(tree, ensure_ascii=False))
        text = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
        text += ',\n  "shards": [\n' + ",\n".join(lines) + "\n  ]\n}\n"
        (folder / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> ShardIndex:
        """Read and check `folder/index.json`; the shards themselves are not opened."""
        folder = Path(folder)
        path = folder / FILE
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise UserError(
                f"{path} can't be read ({e.strerror}): name a folder of shards, or build one with "
                "'salsa-dist shards build'"
            ) from None
        except (ValueError, RecursionError) as e:
            raise _damaged(path, str(e)) from None
        schema = tree.get("schema") if isinstance(tree, dict) else None
        if schema != SCHEMA:
            raise UserError(
                f"{path} has the schema {schema!r}, and this version reads {SCHEMA!r}: build the "
                "shards again"
            )
        try:
            index = _RawIndex.model_validate({k: v for k, v in tree.items() if k != "schema"})
        except ValidationError as e:
            first = e.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _damaged(path, f"{place}: {first['msg']}") from None
        shards = tuple(_shard(raw, path) for raw in index.shards)
        loaded = cls(folder, index.name, index.sample_rate, index.seed, index.recipe, shards)
        _check(loaded, path, index.hash)
        return loaded


class _RawShard(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    path: str
    split: str
    language: str
    samples: int
    seconds: float
    bytes: int
    sha256: str
    entries: list[list[Any]]


class _RawIndex(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    sample_rate: int
    seed: int
    recipe: dict[str, Any]
    hash: str
    shards: list[_RawShard]


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}): build the shards again")


def _shard(raw: _RawShard, path: Path) -> Shard:
    place = PurePosixPath(raw.path)
    if place.is_absolute() or ".." in place.parts or "\\" in raw.path or not place.parts:
        raise UserError(f"{path} names {raw.path!r}, which leaves its folder: don't use this index")
    entries = []
    end = 0
    for item in raw.entries:
        match item:
            case [str(key), float() | int() as seconds, int(offset), int(length)]:
                entry = Entry(key, float(seconds), offset, length)
            case _:
                raise _damaged(path, f"{raw.path} has the entry {str(item)[:80]}")
        if not (entry.offset >= end and entry.length > 0 and 0 < entry.seconds < math.inf):
            raise _damaged(path, f"{raw.path} has the impossible entry {str(item)[:80]}")
        end = entry.offset + entry.length
        entries.append(entry)
    if len(entries) != raw.samples or end > raw.bytes:
        raise _damaged(path, f"{raw.path}: its entries don't fit its samples or bytes")
    return Shard(
        raw.path,
        raw.split,
        raw.language,
        raw.samples,
        raw.seconds,
        raw.bytes,
        raw.sha256,
        tuple(entries),
    )


def _check(index: ShardIndex, path: Path, recorded: str) -> None:
    if index.sample_rate < 0 or not index.shards:
        raise _damaged(path, "it has no shards or no sample rate")
    seen: set[str] = set()
    for shard in index.shards:
        for name in (shard.path, *(entry.key for entry in shard.entries)):
            if name in seen:
                raise _damaged(path, f"{name!r} is there twice")
            seen.add(name)
    if index.hash != recorded:
        raise _damaged(path, "its hash is not that of its list of shards")
