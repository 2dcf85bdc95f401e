"""Copying what growing files gain to a stream."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO


class Follower:
    """Copies new content of a growing file to a stream, with each `pump`."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path, self._stream, self._position = path, stream, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def pump(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        if new:
            self._position += len(new)
            self._stream.write(self._decoder.decode(new))
            self._stream.flush()
