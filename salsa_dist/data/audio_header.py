"""Whether an audio file is cut off, by what its format says of its end.

WAV (with its large kinds RF64 and W64), AIFF, AU and NIST SPHERE: bytes in the header. Ogg: a mark on
the last page. Of flac, mp3 and containers the decoders know how long they are.
"""

from __future__ import annotations

import os
import struct
from typing import IO

HEAD = 1 << 16  # bytes in which a file's sound begins
PAGE = 65_307  # bytes of the largest page of an ogg file
_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_BEHIND = 0.1  # of a file; players and archives leave less behind its sound
_UNKNOWN = 0x7FFFF000  # a length that a program writes before it knows it, and higher ones


def bytes_claimed(head: bytes) -> int | None:
    """Bytes that a file must have by its header, the first `HEAD` bytes; None: it does not say."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        at, long = 12, None
        while at + 8 <= len(head):
            name, length = struct.unpack_from("<4sI", head, at)
            if name == b"ds64" and at + 24 <= len(head):  # lengths that need 64 bits
                long = struct.unpack_from("<Q", head, at + 16)[0]
            if name == b"data":
                return _known(at + 8, length) if long is None else at + 8 + long
            at += 8 + length + length % 2
    elif head[:16] == _W64 and len(head) >= 24:
        return int(struct.unpack_from("<Q", head, 16)[0])
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _known(8, *struct.unpack_from(">I", head, 4))
    elif head[:4] == b".snd" and len(head) >= 12:
        return _known(*struct.unpack_from(">II", head, 4))
    elif head[:8] == b"NIST_1A\n":
        fields = sphere_header(head)
        try:
            size = [int(fields[k]) for k in ("sample_count", "channel_count", "sample_n_bytes")]
            return int(head[8:16]) + size[0] * size[1] * size[2]
        except (KeyError, ValueError):
            return None
    return None


def sound_behind(file: IO[bytes], head: bytes) -> bool:
    """Whether a WAV file goes on behind the sound that its header, in `head`, claims, with no chunk of
    other facts: the header was written for less, or several files were joined."""
    claimed, size = bytes_claimed(head), file.seek(0, os.SEEK_END)
    if head[:4] != b"RIFF" or claimed is None or size - claimed <= _BEHIND * size:
        return False
    file.seek(claimed + claimed % 2)
    behind = file.read(PAGE)
    name, length = struct.unpack_from("<4sI", behind.ljust(8, b"\0"))
    a_chunk = name.strip().replace(b"_", b"").isalnum() and name != b"RIFF" and length <= size - claimed
    return any(behind) and not a_chunk


def has_end(file: IO[bytes], head: bytes) -> bool:
    """Whether a file with the first bytes `head` ends as its kind must: Ogg, by a mark. Others may."""
    if not head.startswith(b"OggS"):
        return True
    file.seek(max(0, file.seek(0, os.SEEK_END) - PAGE))
    return _has_end_mark(file.read(PAGE))


def _has_end_mark(tail: bytes) -> bool:
    """Whether the last page in the last `PAGE` bytes of an ogg file is marked as its end (RFC 3533)."""
    at = tail.rfind(b"OggS") + 5
    return 5 <= at < len(tail) and bool(tail[at] & 4)


def _known(start: int, length: int) -> int | None:
    return None if length >= _UNKNOWN else start + length


def sphere_header(head: bytes) -> dict[str, str]:
    """The fields of a NIST SPHERE header: a name, a type and a value per line."""
    fields = {}
    for line in head[16:].partition(b"end_head")[0].decode("ascii", "replace").splitlines():
        name, _, rest = line.partition(" ")
        fields[name] = rest.partition(" ")[2].strip()
    return fields
