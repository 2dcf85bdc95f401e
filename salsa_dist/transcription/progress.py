"""The progress of a transcription, on standard error; results are on standard output.

transcribed 214 recordings, 3:12:40 of audio, 41x as fast as it plays, 1:02:10 left
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from salsa_dist.log import log
from salsa_dist.transcription.recording import Piece

_PERIOD_S = 10.0


class Progress:
    """Says every ten seconds, on a terminal every second, how far it is; nothing with --quiet.

    Args:
        weight: of all recordings.
        clock: seconds that only grow.
    """

    def __init__(self, weight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._of = weight
        self._clock = clock
        self._began = self._said = clock()
        self._recordings, self._seconds, self._weight, self._before = 0, 0.0, 0.0, 0.0
        self._part = self._resumed = 0.0
        self._shown = False

    def skipped(self, weight: int) -> None:
        """A recording whose result is there from before."""
        self._before += weight

    def __call__(self, piece: Piece) -> None:
        """Count one more piece."""
        self._seconds += piece.end - piece.start
        weight = piece.recording.weight
        done = piece.recording.done[-1].end if piece.recording.done else 0.0
        share = piece.share or 0.0
        if piece.end:
            self._resumed = weight * share * min(1.0, done / piece.end)
        self._part = weight * share - self._resumed
        if piece.last:
            self._recordings += 1
            self._weight += weight - self._resumed
            self._before += self._resumed
            self._part = self._resumed = 0.0
        terminal = sys.stderr.isatty()
        now = self._clock()
        if now - self._said >= (1.0 if terminal else _PERIOD_S) and log.isEnabledFor(logging.INFO):
            self._said, self._shown = now, True
            self._say("" if terminal else "\n")

    def line(self) -> str:
        """The progress, as one line."""
        spent = max(self._clock() - self._began, 1e-9)
        done = self._weight + self._part
        left = self._of - self._before - self._resumed - done
        line = (
            f"transcribed {self._recordings} recordings, {_time(self._seconds)} of audio, "
            f"{self._seconds / spent:.1f}x as fast as it plays"
        )
        if done and left > 0:
            line += f", {_time(spent * left / done)} left"
        return line

    def close(self) -> None:
        """End the line on a terminal; where something was said, say the end too."""
        if self._shown:
            self._say("\n")

    def _say(self, end: str) -> None:
        begin = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(begin + self.line(), end=end, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
