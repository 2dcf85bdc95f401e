"""What a run says to who started it."""

from __future__ import annotations


class Console:
    """One line at a time on the first rank, flushed, so that a log file can be followed."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, line: str) -> None:
        if self.enabled:
            print(line, flush=True)
