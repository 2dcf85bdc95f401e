"""The failure file of a rank: its error, in a file that the launcher names in `SALSA_FAILURE_FILE`.

RUN/logs/JOB/JOB_RANK_failure.json
`{"schema": 1, "rank": r, "time": unix seconds, "user_error": bool, "text": line or traceback}`

A user's error has `"causes"` too: the tracebacks behind its line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from salsa_dist import json_file

SCHEMA = 1
VARIABLE = "SALSA_FAILURE_FILE"
_END = "_failure.json"


_moments: dict[Path, float] = {}  # of this process's first failure, by file


def write_failure(rank: int, text: str, user_error: bool, causes: str = "") -> None:
    """Write the failure of this process, where a launcher asked for it. A full disk is no error.

    Said again, as by the launcher when the process is at its end, it keeps the time of the first word:
    of several ranks the first to fail is the cause.

    `causes` are the tracebacks behind a user's error, which `--debug` shows.
    """
    if VARIABLE not in os.environ:
        return
    path = Path(os.environ[VARIABLE])
    moment = _moments.setdefault(path, time.time())
    record = {
        "rank": rank,
        "time": moment,
        "user_error": user_error,
        "text": text.strip(),
        **({"causes": causes.strip()} if causes else {}),
    }
    with suppress(OSError):
        json_file.write(path, SCHEMA, record, flushed=False)


def path_of(logs: Path, job: str, rank: int) -> Path:
    """The file of one rank."""
    return logs / f"{job}_{rank}{_END}"


def forget_from(rank: int, logs: Path, job: str) -> None:
    """Remove the failures of `rank` and those above, as a start with fewer ranks must."""
    for path in logs.glob(f"{job}_*{_END}"):
        if int(path.name.removesuffix(_END).rpartition("_")[2]) >= rank:
            path.unlink(missing_ok=True)


def failures(logs: Path, job: str = "*") -> Iterator[dict[str, Any]]:
    """Failure files of the ranks of `job`, or of every job with `logs`, sorted by file name."""
    for path in sorted(logs.glob(f"{job}_*{_END}")):
        if failure := failure_in(path):
            yield failure


def failure_in(path: Path) -> dict[str, Any]:
    """The failure of one rank; empty if its file does not exist."""
    found = json_file.peek(path, SCHEMA)
    return found if {"rank", "time", "text", "user_error"} <= found.keys() else {}
