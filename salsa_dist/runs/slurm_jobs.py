"""The state of Slurm jobs: from sacct, or from the queue, which keeps ended jobs for minutes.

    sacct -X -j 17,18      17|FAILED|n[1-2]|None              of long ago too
    squeue --states=all    18|PENDING|(Resources)             also without accounting, and at once
    squeue --array         19_2|RUNNING|n1|None               a line a task, of those that wait too

What neither knows is not in the answer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

_TIMEOUT_S = 20
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "RESIZING")
_NOTHING = ("None", "None assigned", "(null)")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED")


@dataclass(frozen=True)
class SlurmJob:
    """Slurm's word for a job's state, such as RUNNING, its nodes, and why it waits or ended."""

    state: str
    nodes: str
    reason: str

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def waits(self) -> bool:
        return self.state in WAITING


def slurm_jobs(ids: Collection[str]) -> dict[str, SlurmJob]:
    """Slurm's facts about `ids`; empty without Slurm."""
    if not ids:
        return {}
    wanted = sorted(set(ids))
    columns = "JobID,State,NodeList,Reason"
    command = ["sacct", "-X", "--noheader", "--parsable2", "-o", columns, "-j", ",".join(wanted)]
    found = _parse(_lines(command), wanted)
    # The queue is asked of the others, and of those that accounting thinks are not over: it is ahead.
    open_ = [job for job in wanted if job not in found or found[job].active]
    if open_:
        command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%N|%r"]
        found |= _parse(_lines(command), open_)
    return found


def cancel(job: str) -> str | None:
    """Ask Slurm to end `job`. Returns Slurm's answer if it refuses."""
    try:
        done = subprocess.run(
            ["scancel", job], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    return None if done.returncode == 0 else " ".join(done.stderr.split())


def _lines(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _parse(lines: list[str], wanted: Collection[str]) -> dict[str, SlurmJob]:
    found = {}
    for line in lines:
        job, *fields = line.strip().split("|")
        if job in wanted and len(fields) >= 3:
            state, nodes, reason = fields[:3]
            # sacct says "CANCELLED by 1000", and cuts long words with a +.
            word = (state.split() or ["UNKNOWN"])[0].rstrip("+")
            nodes, reason = ("" if x in _NOTHING else x for x in (nodes, reason))
            found[job] = SlurmJob(word, nodes, reason)
    return found
