"""The launcher's record of each job that it starts, for `salsa-dist runs`.

RUN/logs/<job>/launch.json     {"schema": "salsa-dist/launch/1", "job", "cluster", "command", "nodes",
                                "tasks_per_node", "time", "host", "pid"}
RUN/logs/<job>/ended.json      {"schema": "salsa-dist/ended/1", "status", "time"}; local jobs alone:
                               of the others Slurm knows how they ended
RUN/logs/<job>/<job>_<rank>_log.out, .err, _failure.json
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from salsa_dist import json_file
from salsa_dist.run.folder import RunFolder

LAUNCH_SCHEMA = "salsa-dist/launch/1"
ENDED_SCHEMA = "salsa-dist/ended/1"
LAUNCH, ENDED = "launch.json", "ended.json"


@dataclass(frozen=True)
class Launch:
    """One job at its start.

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
    folder.mkdir(parents=True, exist_ok=True)
    json_file.write(folder / LAUNCH, LAUNCH_SCHEMA, asdict(launch))


def note_end(folder: Path, status: int) -> None:
    """Write `folder`/ended.json: the exit status of a local job."""
    json_file.write(folder / ENDED, ENDED_SCHEMA, {"status": status, "time": time.time()})


def read(run: Path) -> list[tuple[Launch, Path]]:
    """All jobs of `run` with their log folders, oldest first; invalid records are skipped."""
    found = []
    for file in _files(run):
        with suppress(TypeError):
            found.append((Launch(**json_file.peek(file, LAUNCH_SCHEMA)), file.parent))
    return sorted(found, key=lambda pair: pair[0].time)


def end_status(folder: Path) -> int | None:
    """The exit status of a local job; None while it runs, or if it was killed."""
    ended = json_file.peek(folder / ENDED, ENDED_SCHEMA)
    return int(ended["status"]) if ended else None


def any_launch(run: Path) -> bool:
    """Whether the launcher ever started a job of `run`."""
    return any(_files(run))


def _files(run: Path) -> Iterator[Path]:
    return RunFolder(run).logs.glob(f"*/{LAUNCH}")
