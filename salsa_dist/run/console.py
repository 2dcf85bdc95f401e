"""The console output of a run: lines in a log, or a progress bar on a terminal.

step 120/400  loss bg 1.204  el 0.981  12.3 clips/s  0:03:20 left   a log: seldom, and at the end
━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━  120/400  loss bg 1.204 …            a terminal: at every step
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from salsa_dist.log import log

_SOONEST_S, _LATEST_S = 5.0, 60.0
_SHARE = 0.02  # of the time so far: a long run's log stays short
_PACE = 64  # steps over whose mean time what is left is told: one slow step changes little


class Console:
    """Prints one line at a time on rank 0, and flushes, so that a log file can be followed.

    Args:
        enabled: on the first rank; others say nothing, nor does it with --quiet.
        clock: seconds that only grow.
    """

    def __init__(self, enabled: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled = enabled and log.isEnabledFor(logging.INFO)
        self._clock = clock
        self._began = self._said = clock()
        self._bar: Progress | None = None
        # After each step: its number, the steps of all adapters so far, the time.
        self._ends: deque[tuple[int, int, float]] = deque(maxlen=_PACE + 1)

    def __call__(self, line: str) -> None:
        if not self.enabled:
            return
        if self._bar is None:
            log.info(line)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def progress(self, done: int, of: int, text: Callable[[], str], adapters: int, left: int) -> None:
        """Show that `done` of `of` steps are done.

        Args:
            done: steps of the adapter with the most.
            of: all of its steps.
            text: is made only when it is shown.
            adapters: that took part in the last step.
            left: steps to go, summed over the adapters. The time that is left is told from it, since
                steps are shorter once some adapters have ended.
        """
        if not self.enabled:
            return
        now = self._clock()
        if self._ends and done <= self._ends[-1][0]:  # another job of the same run
            self._ends.clear()
        self._ends.append((done, adapters + (self._ends[-1][1] if self._ends else 0), now))
        shown = self._left(left)
        if sys.stdout.isatty():
            self._draw(done, of, text() + shown)
            return
        period = min(_LATEST_S, max(_SOONEST_S, _SHARE * (now - self._began)))
        if done == of or now - self._said >= period:
            self._said = now
            self(f"step {done}/{of}  {text()}{shown}")

    def _left(self, steps: int) -> str:
        """The time for so many steps at the mean pace of the last; nothing where that is not known."""
        (_, before, since), (_, after, now) = self._ends[0], self._ends[-1]
        if before == after or steps <= 0:
            return ""
        return f"  {timedelta(seconds=round(steps * (now - since) / (after - before)))} left"

    def close(self) -> None:
        """Stop the progress bar and keep its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, done: int, of: int, text: str) -> None:
        if self._bar is None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Terminal(file=sys.stdout), refresh_per_second=4)
            self._bar.add_task(text, total=of)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=of, description=text)
