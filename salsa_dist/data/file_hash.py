"""What a file's bytes come to: the hash that an index keeps of each shard, and its columns of it."""

from __future__ import annotations

import hashlib

from salsa_dist.places import Folder


def sha256_of(path: Folder) -> str:
    """Of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
