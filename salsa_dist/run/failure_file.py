"""What stopped a rank, in a file that its launcher names by `SALSA_FAILURE_FILE`.

`{"schema": 1, "rank": r, "time": unix seconds, "user_error": bool, "text": line or traceback}`

A user's error has `"causes"` too: the tracebacks behind its line.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from salsa_dist.whole_file import replace_file

SCHEMA = 1
VARIABLE = "SALSA_FAILURE_FILE"


def write_failure(rank: int, text: str, user_error: bool, causes: str = "") -> None:
    """Write the failure of this process, where a launcher asked for it. A full disk is no error.

    `causes` are the tracebacks behind a user's error, which `--debug` shows.
    """
    if VARIABLE not in os.environ:
        return
    record = {
        "schema": SCHEMA,
        "rank": rank,
        "time": time.time(),
        "user_error": user_error,
        "text": text.strip(),
        **({"causes": causes.strip()} if causes else {}),
    }
    path = Path(os.environ[VARIABLE])
    with suppress(OSError):
        replace_file(path, json.dumps(record), flushed=False)
