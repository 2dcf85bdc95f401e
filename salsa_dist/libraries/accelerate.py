"""accelerate's trackers without accelerate's own state."""

from __future__ import annotations

import logging
from typing import Any


def trackers() -> Any:
    """accelerate's module of trackers, for use by one rank alone.

    Assumes that trackers log by the module's `logger`, which wants accelerate's state; making that
    state would choose a device and a number of threads of its own. A tracker asks the state who is
    first as long as its `main_process_only` is true.

    Seen: accelerate 1.15.
    Else: accelerate's error at the start of a run that has `trackers`.
    Test: test_a_tracker_works_without_accelerates_state
    """
    from accelerate import tracking

    setattr(tracking, "logger", logging.getLogger(tracking.__name__))  # noqa: B010
    return tracking
