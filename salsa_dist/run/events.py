"""`events.jsonl`: what a run did, one JSON object a line, for reports and other programs.

    {"schema": "salsa-dist/events/1", "event": "step", "time": 1764000000.0, "step": 12, …}

Events: start, preflight, data, placement, step, bad_samples, checkpoint, skipped, end. A run that was
stopped and went on has a second `start`, and may repeat the steps after its last checkpoint: the last
line of a step counts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from salsa_dist import jsonl
from salsa_dist.errors import UserError

SCHEMA = "salsa-dist/events/1"
NAME = "events.jsonl"


class Events:
    """Writes events of a run; on ranks other than the first it writes nothing."""

    def __init__(self, run: Path, enabled: bool) -> None:
        self._file = jsonl.append(run / NAME) if enabled else None

    def write(self, event: str, **fields: Any) -> None:
        if self._file is not None:
            line = {"schema": SCHEMA, "event": event, "time": round(time.time(), 3), **fields}
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError as e:
                raise UserError(
                    f"{self._file.name} can't be written: {e.strerror}; the last checkpoint is whole, "
                    "launch again once there is room"
                ) from e

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(run: Path) -> list[dict[str, Any]]:
    """The events of a run so far, without half a line at the end; none where it has not begun.

    Raises:
        UserError: a line is damaged, or of another schema.
    """
    path = run / NAME
    return list(jsonl.read(path, SCHEMA)) if path.is_file() else []


def last_start(run: Path) -> dict[str, Any] | None:
    """How a run began, or went on, the last time; None where it has not begun."""
    return next((e for e in reversed(read(run)) if e["event"] == "start"), None)
