"""The samples of a whole tar, read once from start to end: for lint, foreign tars and resharding.

    tar ──found──► Found ── key, offset, length, files {"flac": b"…", "json": b"…"}, notes

WebDataset's rules: files that stand side by side with one key are one sample. Kinds that shards don't
hold are skipped unread; `notes` names what is dangerous, or has a name that it can't have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from salsa_dist.corpus.archive import members, unsafe_name
from salsa_dist.data.shards import DANGEROUS_KINDS, KINDS, MAX_BYTES, key_and_kind
from salsa_dist.places import Folder, Remote

_COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")


@dataclass
class Found:
    """One sample in a tar: bytes `[offset, offset + length)`."""

    key: str
    offset: int
    length: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def tars(folder: Folder) -> list[str]:
    """The paths of all tars below `folder`, relative to it. Raises: OSError: a store can't be read."""
    if isinstance(folder, Remote):
        return folder.files(".tar")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))


def compressed(folder: Folder) -> list[str]:
    """The paths of tars below `folder` that are no tars before they are unpacked. Raises: OSError."""
    if isinstance(folder, Remote):
        return [path for path in folder.files() if path.endswith(_COMPRESSED)]
    paths = (path for path in folder.rglob("*.t*") if path.name.endswith(_COMPRESSED))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def found(path: Folder) -> Iterator[Found]:
    """The samples of a tar. Raises: DamagedTar, OSError, after the last intact sample."""
    sample: Found | None = None
    for member in members(path):
        if member.name.endswith("/") or (not member.plain and "." not in member.name):
            continue  # a folder
        key, kind = key_and_kind(member.name)
        if sample is None or key != sample.key:
            if sample:
                yield sample
            sample = Found(key, member.offset)
        sample.length = member.end - sample.offset
        if why := unsafe_name(member.name):
            sample.notes.append(f"has the unsafe name {member.name[:80]!r}: it {why}")
        elif not member.plain:
            sample.notes.append(f"holds {member.name!r}, which is no plain file")
        elif kind.rpartition(".")[2] in DANGEROUS_KINDS:
            sample.notes.append(f"holds {member.name!r}, which may run code when decoded")
        elif kind in sample.files:
            sample.notes.append(f"holds {member.name!r} twice")
        elif kind in KINDS:
            if member.size > MAX_BYTES:
                sample.notes.append(f"claims {member.size} bytes for {member.name!r}")
            else:
                sample.files[kind] = member.read()
    if sample:
        yield sample
