"""Audio that soundfile does not decode (m4a, mp4, webm, amr, wma …), by PyAV where it is installed.

    first bytes ──kind_of──► "mp4" ──blocks──► (samples,) float32 mono, in blocks, and the rate in Hz

The kind is told by the first bytes and PyAV gets no other demuxer to choose: FFmpeg's playlists and
subtitles, which can name other files and addresses, are never tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salsa_dist.errors import UserError

# What a file is called, FFmpeg's name of its demuxer, and what it begins with, from which byte on.
_KINDS = (
    ("m4a, mp4 or mov", "mov", 4, (b"ftyp", b"moov", b"mdat", b"wide")),
    ("webm or mkv", "matroska", 0, (b"\x1aE\xdf\xa3",)),
    ("amr", "amr", 0, (b"#!AMR",)),
    ("wma", "asf", 0, (b"0&\xb2u\x8ef\xcf\x11",)),
    ("aac", "aac", 0, (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8")),
    ("ac3", "ac3", 0, (b"\x0bw",)),
    ("flv", "flv", 0, (b"FLV\x01",)),
)
HEAD = 16  # bytes that tell the kind
SUFFIXES = (
    *("m4a", "mp4", "m4b", "mov", "3gp", "webm", "mkv", "mka", "weba"),
    *("amr", "wma", "aac", "ac3", "flv"),
)
# A file whose end is missing by more than this is cut off.
_MISSING_S, _MISSING_SHARE = 1.0, 0.02


class Kind(NamedTuple):
    """What a file is called, and what FFmpeg calls its demuxer."""

    called: str
    demuxer: str


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file by its first bytes; None: none that is decoded here."""
    for called, demuxer, start, marks in _KINDS:
        if any(head.startswith(mark, start) for mark in marks):
            return Kind(called, demuxer)
    return None


def blocks(file: IO[bytes], kind: Kind, name: str) -> Iterator[tuple[NDArray[np.float32], int]]:
    """The first audio track: `(samples,)` float32, the mean of its channels, and the rate in Hz.

    Args:
        file: at its start; it can seek.
        kind: from `kind_of`.
        name: what errors call it.

    Raises:
        UserError: PyAV is not installed, or the file is damaged, cut off or without audio.
    """
    try:
        import av
    except ImportError as e:
        raise UserError(
            f"{name} is {kind.called} audio, which needs PyAV: pip install 'salsa-dist[codecs]'"
        ) from e
    decoded, claimed, rate = 0.0, 0.0, 0
    try:
        with av.open(file, "r", kind.demuxer, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise UserError(f"{name} holds no audio track: remove it")
            track = container.streams.audio[0]
            if track.duration and track.time_base:
                claimed = float(track.duration * track.time_base)
            floats = None
            for frame in container.decode(track):
                if floats is None or frame.sample_rate != rate:
                    rate = frame.sample_rate
                    floats = av.AudioResampler(format="fltp")  # keeps rate and channels
                for made in floats.resample(frame):
                    own: NDArray[Any] = made.to_ndarray()
                    decoded += own.shape[1] / rate
                    yield own.mean(axis=0, dtype=np.float32), rate
    except (av.FFmpegError, OSError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{name} can't be read as audio ({reason}): fix or remove it") from e
    if decoded < claimed - max(_MISSING_S, _MISSING_SHARE * claimed):
        raise UserError(f"{name} is cut off: {decoded:.1f} of {claimed:.1f} s; remove it")
