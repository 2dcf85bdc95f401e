"""Hashes of files: of shards, of their samples, and of the index, for its columns."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace

from salsa_dist.data.entries import Entry
from salsa_dist.places import Folder


def sha256_of(path: Folder) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def summed(path: Folder, entries: Sequence[Entry]) -> tuple[str, tuple[Entry, ...]]:
    """SHA-256 of a shard, and its entries with their CRC-32; the file is read once."""
    digest, start, at = hashlib.sha256(), 0, 0
    sums = [0] * len(entries)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            end = start + len(block)
            while at < len(entries) and entries[at].offset < end:
                first, last = entries[at].offset, entries[at].offset + entries[at].length
                own = memoryview(block)[max(first - start, 0) : last - start]
                sums[at] = zlib.crc32(own, sums[at])
                if last > end:
                    break
                at += 1
            start = end
    found = tuple(replace(e, crc32=own) for e, own in zip(entries, sums, strict=True))
    return digest.hexdigest(), found
