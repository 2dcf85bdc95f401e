"""accelerate's trackers without accelerate's own state."""

from __future__ import annotations

import logging
from typing import Any


def trackers() -> Any:
    """accelerate's module of trackers, for use on one rank only.

    Assumes that trackers log with the module's `logger`, which needs accelerate's state. That state
    would set the device and the number of threads. A tracker asks the state for the main process only
    while its `main_process_only` is true.

    Seen: accelerate 1.15.
    Else: accelerate raises an error at the start of a run with `trackers`.
    Test: test_a_tracker_works_without_accelerates_state
    """
    from accelerate import tracking

    setattr(tracking, "logger", logging.getLogger(tracking.__name__))  # noqa: B010
    return tracking
