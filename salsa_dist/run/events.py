"""`events.jsonl`: what a run did, one JSON object per line, for reports and other programs.

    {"schema": "salsa-dist/events/1", "event": "step", "time": 1764000000.0, "step": 12, …}

Events: start, preflight, data, placement, step, bad_samples, checkpoint, skipped, out_of_memory, end. A
run that was stopped and went on has a second `start`, and may repeat the steps after its last
checkpoint: the last line of a step counts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from salsa_dist import jsonl
from salsa_dist.errors import UserError
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/events/1"


class Events:
    """Writes events of a run; on ranks other than the first it writes nothing."""

    def __init__(self, run: Path, enabled: bool) -> None:
        self._file = jsonl.append(RunFolder(run).events) if enabled else None

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
    path = RunFolder(run).events
    return list(jsonl.read(path, SCHEMA)) if path.is_file() else []


def read_forgiving(run: Path) -> list[dict[str, Any]]:
    """As `read`, but damage is passed over: what a run cost is asked just when it went wrong."""
    try:
        text = RunFolder(run).events.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("schema") == SCHEMA:
            found.append(event)
    return found


def last_start(run: Path) -> dict[str, Any] | None:
    """How a run began, or went on, the last time; None where it has not begun."""
    return next((e for e in reversed(read(run)) if e["event"] == "start"), None)
