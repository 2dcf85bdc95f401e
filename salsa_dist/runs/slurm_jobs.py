"""The state of Slurm jobs: from sacct, or from the queue, which keeps ended jobs for minutes.

    sacct -X -j 17,18      17|FAILED|n[1-2]|None              of long ago too
    squeue --states=all    18|PENDING|(Resources)             also without accounting, and at once
    squeue --array         19_2|RUNNING|n1|None               a line a task, of those that wait too

What neither knows is not in the answer. A controller that is restarted or busy answers nobody: a job
that may be there all the same is `NO_ANSWER`, and not one that Slurm does not know.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

_TIMEOUT_S = 20
_NOTHING = ("None", "None assigned", "(null)")
# The last two: requeued and held, by an administrator or by an exit status (RequeueExitHold).
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED", "REQUEUE_HOLD", "SPECIAL_EXIT")
ACTIVE = (*WAITING, "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")


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


NO_ANSWER = SlurmJob("", "", "")


def slurm_jobs(ids: Collection[str]) -> dict[str, SlurmJob]:
    """Slurm's facts about `ids`; empty without Slurm, `NO_ANSWER` where it gives none."""
    if not ids:
        return {}
    wanted = sorted(set(ids))
    columns = "JobID,State,NodeList,Reason"
    command = ["sacct", "-X", "--noheader", "--parsable2", "-o", columns, "-j", ",".join(wanted)]
    found = _parse(_lines(command) or [], wanted)  # many clusters have no accounting
    # The queue is asked of the others, and of those that accounting thinks are not over: it is ahead.
    open_ = [job for job in wanted if job not in found or found[job].active]
    if open_:
        command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%N|%r"]
        lines = _lines(command)
        if lines is None:
            return {**dict.fromkeys(open_, NO_ANSWER), **found}
        found |= _parse(lines, open_)
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


def _lines(command: list[str]) -> list[str] | None:
    """What a command prints; None if it fails, nothing if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


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
