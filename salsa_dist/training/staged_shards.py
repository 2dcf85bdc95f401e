"""Copies a run's shards to each node's own disk: one rank per node copies, all ranks read.

data.stage_to: $SLURM_TMPDIR

    $SLURM_TMPDIR/
    └── tuxpaint-3f9c2a71d0b4/      the shards' name and a hash of their list
        └── bg/train-000000.tar     there only when whole, with the SHA-256 of the index

Shards that are there already are used: those of a job before this one, or of one that was killed while
it copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from salsa_dist.data.index import Shard, ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.placement.node_disk import Told, node_folder, once_a_node
from salsa_dist.placement.ranks import Ranks
from salsa_dist.places import Folder
from salsa_dist.whole_file import written_whole

_BLOCK = 8 * 2**20


def staged_shards(
    index: ShardIndex, shards: Sequence[Shard], to: str, ranks: Ranks, say: Callable[[str], None]
) -> Path:
    """The folder to read `shards` from on this node. Every rank calls this; one per node copies.

    Args:
        index: of the folder that they come from.
        shards: those that will be read.
        to: folder on a disk of the node; environment variables are put in.

    Raises:
        UserError: on all ranks: an unset variable, too little room, a shard that is not what the
            index says.
    """

    def make(told: Told) -> Path:
        folder = node_folder("data.stage_to", to) / f"{index.folder.name}-{index.hash[:12]}"
        _copy(index.folder, {s.path: s for s in shards}, folder, say, told)
        return folder

    return once_a_node(ranks, f"data.stage_to is {to}", make, say)


def _copy(
    source: Folder, shards: dict[str, Shard], folder: Path, say: Callable[[str], None], told: Told
) -> None:
    copies = {folder / shard.path: shard for shard in shards.values()}
    missing = [s for path, s in copies.items() if not path.is_file() or path.stat().st_size != s.bytes]
    size = sum(shard.bytes for shard in missing)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"the shards take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
    say(f"{len(missing)} of {len(shards)} shards to copy ({size / 1e9:.2f} GB) to {folder}")
    done = 0
    for shard in missing:
        _copy_one(source / shard.path, folder / shard.path, shard.sha256)
        done += shard.bytes
        told(done, size)


def _copy_one(source: Folder, target: Path, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with written_whole(target, writer=str(os.getpid())) as part:
        with source.open("rb") as read, open(part, "wb") as write:
            while block := read.read(_BLOCK):
                digest.update(block)
                write.write(block)
        if digest.hexdigest() != sha256:
            raise UserError(f"shard {source} is not what its index.json says: build the shards again")
