"""The samples of an index as columns, so that millions of them load in a moment.

Columns ── seconds, offsets, lengths, crc32 (n,); keys, one after the other, each ended by a zero byte
Entries ── a shard's stretch of them, a sequence of Entry that makes them when asked
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Entry:
    """One sample: `seconds` of audio in bytes `[offset, offset + length)` of its shard.

    `crc32` is that of these bytes; None where an index of an earlier version has none.
    """

    key: str
    seconds: float
    offset: int
    length: int
    crc32: int | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Columns:
    """All samples of an index, shard after shard.

    Attributes:
        seconds: (n,) float64.
        offsets, lengths: (n,) int64, bytes in the samples' shards.
        keys: (bytes,) uint8, UTF-8, each key ended by a zero.
        crc32: (n,) uint32, of the samples' bytes; None: not known of all.
    """

    seconds: NDArray[np.float64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    keys: NDArray[np.uint8]
    crc32: NDArray[np.uint32] | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Columns:
        """Raises: ValueError: a key with a zero byte; OverflowError: a number beyond 64 bit."""
        if any("\0" in entry.key for entry in entries):
            raise ValueError("a key has a zero byte")
        raw = "".join(f"{entry.key}\0" for entry in entries).encode()
        sums = [entry.crc32 for entry in entries]
        return cls(
            np.array([entry.seconds for entry in entries], np.float64),
            np.array([entry.offset for entry in entries], np.int64),
            np.array([entry.length for entry in entries], np.int64),
            np.frombuffer(raw, np.uint8),
            None if None in sums else np.array(sums, np.uint32),
        )

    @cached_property
    def key_ends(self) -> NDArray[np.int64]:
        """(n,) where the zero of each key stands."""
        return np.flatnonzero(self.keys == 0)


class Entries(Sequence[Entry]):
    """Samples `[start, stop)` of some columns."""

    __slots__ = ("columns", "start", "stop")

    def __init__(self, columns: Columns, start: int, stop: int) -> None:
        self.columns, self.start, self.stop = columns, start, stop

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(samples,) of audio."""
        return self.columns.seconds[self.start : self.stop]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(samples,) bytes."""
        return self.columns.offsets[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, i: int) -> Entry: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, i: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(i, slice):
            return tuple(self)[i]
        at = self.start + range(len(self))[i]
        columns = self.columns
        key = self._raw_keys(at, at + 1)[:-1].decode()
        numbers = columns.seconds[at], columns.offsets[at], columns.lengths[at]
        crc32 = None if columns.crc32 is None else int(columns.crc32[at])
        return Entry(key, float(numbers[0]), int(numbers[1]), int(numbers[2]), crc32)

    def __iter__(self) -> Iterator[Entry]:
        keys = self._raw_keys(self.start, self.stop).decode().split("\0")
        numbers = (self.seconds, self.offsets, self.columns.lengths[self.start : self.stop])
        crc32 = self.columns.crc32
        sums = repeat(None) if crc32 is None else crc32[self.start : self.stop].tolist()
        return map(Entry, keys, *(column.tolist() for column in numbers), sums)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Entries({len(self)})"

    def _raw_keys(self, start: int, stop: int) -> bytes:
        ends = self.columns.key_ends
        first = int(ends[start - 1]) + 1 if start else 0
        last = int(ends[stop - 1]) + 1 if stop > start else first
        return self.columns.keys[first:last].tobytes()


def seconds_of(entries: Sequence[Entry]) -> NDArray[np.float64]:
    """(samples,) of audio."""
    if isinstance(entries, Entries):
        return entries.seconds
    return np.array([entry.seconds for entry in entries], np.float64)


def offsets_of(entries: Sequence[Entry]) -> NDArray[np.int64]:
    """(samples,) bytes."""
    if isinstance(entries, Entries):
        return entries.offsets
    return np.array([entry.offset for entry in entries], np.int64)
