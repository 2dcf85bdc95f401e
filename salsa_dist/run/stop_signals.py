"""Stop signals: a rank records them, and all ranks stop together at the end of a step."""

from __future__ import annotations

import signal
from typing import Any


class StopSignals:
    """Inside its block, signals to stop are noted, instead of ending the process at once.

    SIGUSR2 is how a cluster announces a time limit. A launcher may have a handler for it that asks
    for the job to be run again: it is called by `hand_over`, once the state is saved.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            self._before[number] = signal.signal(number, lambda n, _: self.received.append(n))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hand_over(self) -> None:
        """Let the handler that was there before do its part."""
        handler = self._before[signal.SIGUSR2]
        if signal.SIGUSR2 in self.received and callable(handler):
            handler(signal.SIGUSR2, None)
