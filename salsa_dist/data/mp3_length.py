"""MP3 files that do not state their length: frames are counted, and one that says so is put first.

    tag | frame frame …  ──stated──► frame "Info" N | frame frame …        None: its length is known

An MP3 of varying bit rate has its length in its first frame; encoders that write into a pipe leave
that out. libsndfile then guesses, from the bit rate of the first frames and the size of the file, and
reads no further: more than half of the speech may be lost. A picture in a tag counts as hours.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from typing import IO, Any

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"\0\0")  # what may follow the last frame
_MORE_SHARE, _MORE_FRAMES = 0.02, 4  # a guess that is longer by no more than both loses nothing


@dataclass(frozen=True)
class _Frame:
    """A header of layer III: bytes and samples of its frame, and of what precedes an "Info" in it."""

    raw: bytes
    size: int
    samples: int
    side: int

    @classmethod
    def of(cls, head: bytes) -> _Frame | None:
        if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
            return None
        version, kbits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
        if version == 1 or kbits in (0, 15) or rate == 3:
            return None
        first = version == 3
        samples = 1152 if first else 576
        bits = (_KBITS_1 if first else _KBITS_2)[kbits] * 1000
        size = samples // 8 * bits // _RATES[version][rate] + (head[2] >> 1 & 1)
        mono = head[3] >> 6 == 3
        return cls(head[:4], size, samples, (17 if mono else 32) if first else (9 if mono else 17))

    def info(self, frames: int) -> bytes:
        """A frame without sound that says how many follow it."""
        head = bytearray(self.raw)
        head[1] |= 1  # no checksum
        head[2] = 0x90 | head[2] & 0x0C  # 128 or 80 kbit/s, no padding
        body = bytes(head) + bytes(self.side) + b"Info" + struct.pack(">II", 1, frames)
        made = _Frame.of(bytes(head))
        assert made is not None
        return body + bytes(made.size - len(body))


def stated(file: IO[bytes], guess: int) -> IO[bytes] | None:
    """`file` with its length in front; None: it states one, `guess` (samples) is right, or its frames
    are not all in a row, so that they can't be counted."""
    size = file.seek(0, os.SEEK_END)
    start = at = _behind_tags(file)
    file.seek(start)
    first = _Frame.of(head := file.read(64))
    if first is None or any(mark in head for mark in (b"Info", b"Xing", b"VBRI")):
        return None
    frames, frame = 0, _Frame.of(head)
    while frame is not None and at + frame.size <= size:
        frames, at = frames + 1, at + frame.size
        file.seek(at)
        frame = _Frame.of(head := file.read(11))
    if frame is None and at < size and not head.startswith(_TAGS):
        return None
    samples = frames * first.samples
    more = guess - samples
    if -first.samples <= more <= _MORE_SHARE * samples + _MORE_FRAMES * first.samples:
        return None
    return io.BufferedReader(_Prefixed(first.info(frames), file, start))


def _behind_tags(file: IO[bytes]) -> int:
    at = 0
    while True:
        file.seek(at)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return at
        at += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])


class _Prefixed(io.RawIOBase):
    """`head`, and what `file` has from byte `start` on."""

    def __init__(self, head: bytes, file: IO[bytes], start: int) -> None:
        self._head, self._file, self._start, self._at = head, file, start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = len(self._head) + self._file.seek(0, os.SEEK_END) - self._start
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: end}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._head[self._at : self._at + len(buffer)]
        if not part:
            self._file.seek(self._start + self._at - len(self._head))
            part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)
