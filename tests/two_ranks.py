"""Two ranks of one program, as processes of this machine that meet at a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def two_ranks(folder: Path, program: str, *words: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Both run `program` with `words`; each writes its `log-N` and `failure-N.json` into `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = []
    for rank in (0, 1):
        world = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world["SALSA_FAILURE_FILE"] = str(folder / f"failure-{rank}.json")
        with (folder / f"log-{rank}").open("w") as log:
            both.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, *words],
                    env={**os.environ, **world},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.wait()
