"""Divides a rank's windows of a step into forward passes.

    seconds of the windows, in rising order    1.1  1.3  1.4  2.0 │ 4.1  4.4 │ 29.0
    a pass    at most so many windows, and so many seconds with each as long as its longest

All ranks make as many passes as the one with the most to do needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PassLimits:
    """The largest pass on one rank.

    Attributes:
        windows: most windows.
        seconds: most seconds, padding included; None: as many as there are.
        padded_to_s: a window is padded to a multiple of it; None: to the longest of its pass.
    """

    windows: int
    seconds: float | None
    padded_to_s: float | None

    def passes(self, windows: Iterable[int], seconds: Iterable[Iterable[float]]) -> int:
        """How many passes each rank makes.

        Args:
            windows: how many each rank has.
            seconds: of each rank's windows; taken only if seconds are limited.
        """
        most = max(1, -(-max(windows) // self.windows))
        if self.seconds is None:
            return most
        return max(most, *(len(self._packed(sorted(own), self.seconds)) for own in seconds))

    def largest(self, windows: int, seconds: float) -> int:
        """How many of `windows` one pass may have, if each lasts `seconds`."""
        if self.seconds is None:
            return max(1, windows)
        return max(1, self._packed([seconds] * windows, self.seconds)[0][1])

    def cuts(self, seconds: Sequence[float], passes: int) -> list[tuple[int, int]]:
        """First window of each of `passes`, and the one after its last, for windows in rising order."""
        count = len(seconds)
        if self.seconds is None:
            return [(count * i // passes, count * (i + 1) // passes) for i in range(passes)]
        most = self.seconds
        # Clips that stand in for others, or were augmented, may be longer than planned.
        while len(found := self._packed(seconds, most)) > passes:
            most *= 1.1
        return found + [(count, count)] * (passes - len(found))

    def _packed(self, seconds: Sequence[float], most: float) -> list[tuple[int, int]]:
        """Windows in rising order in as few passes as their padded seconds and number allow."""
        found: list[tuple[int, int]] = []
        for i, own in enumerate(seconds):
            unit = self.padded_to_s
            longest = own if unit is None else max(1, math.ceil(own / unit - 1e-6)) * unit
            first = found[-1][0] if found else 0
            more = i + 1 - first
            if found and more <= self.windows and more * longest <= most:
                found[-1] = (first, i + 1)
            else:
                found.append((i, i + 1))
        return found
