"""What the launcher notes of each job that it starts, for `salsa-dist runs`.

RUN/logs/<job>/launch.json     {"schema": "salsa-dist/launch/1", "job", "cluster", "command", "nodes",
                                "tasks_per_node", "time", "host", "pid"}
RUN/logs/<job>/ended.json      {"schema": "salsa-dist/ended/1", "status", "time"}; local jobs alone:
                               of the others Slurm knows how they ended
RUN/logs/<job>/<job>_<rank>_log.out, .err, _failure.json
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salsa_dist.whole_file import replace_file

LAUNCH_SCHEMA = "salsa-dist/launch/1"
ENDED_SCHEMA = "salsa-dist/ended/1"


@dataclass(frozen=True)
class Launch:
    """One job as it was started.

    Attributes:
        job: its id; Slurm's number, or `local-…`.
        cluster: `slurm` or `local`.
        command: `train` or `evaluate`.
        nodes, tasks_per_node: its shape.
        time: of the launch, in Unix seconds.
        host, pid: where the launcher ran, which a local job dies with.
    """

    job: str
    cluster: str
    command: str
    nodes: int
    tasks_per_node: int
    time: float
    host: str
    pid: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node


def note(folder: Path, job: str, cluster: str, command: str, nodes: int, tasks_per_node: int) -> None:
    """Write `folder`/launch.json about a job that this process just started."""
    launch = Launch(
        job, cluster, command, nodes, tasks_per_node, time.time(), socket.gethostname(), os.getpid()
    )
    _write(folder / "launch.json", {"schema": LAUNCH_SCHEMA, **asdict(launch)})


def note_end(folder: Path, status: int) -> None:
    """Write `folder`/ended.json: the exit status of a local job."""
    _write(folder / "ended.json", {"schema": ENDED_SCHEMA, "status": status, "time": time.time()})


def read(run: Path) -> list[tuple[Launch, Path]]:
    """Every job of `run` with its log folder, the oldest first; what is no record is passed over."""
    found = []
    for file in run.glob("logs/*/launch.json"):
        fields = _read(file, LAUNCH_SCHEMA)
        if fields is not None:
            try:
                found.append((Launch(**fields), file.parent))
            except TypeError:
                continue
    return sorted(found, key=lambda pair: pair[0].time)


def end_status(folder: Path) -> int | None:
    """The exit status of a local job; None while it runs, or if it was killed."""
    fields = _read(folder / "ended.json", ENDED_SCHEMA)
    return None if fields is None else int(fields["status"])


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(record) + "\n")


def _read(path: Path, schema: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict) or fields.pop("schema", None) != schema:
        return None
    return fields
