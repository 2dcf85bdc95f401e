"""The status of a run: one word, and details.

    pending    waits in the queue
    running    … and "hung" when no rank has moved for long
    finished   came to its end
    stopped    ended in order before its end; the same command goes on
    cancelled  by somebody
    failed     a rank or its node broke; see `failure`
    unknown    Slurm forgot the job, and its files don't say; or it does not answer

A job counts by what Slurm says, or for a local one by whether its launcher lives; a run without a
job of the launcher (torchrun, or one process) by its files alone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from salsa_dist.errors import UserError
from salsa_dist.run.failure_file import failures
from salsa_dist.run.watchdog import silent_for
from salsa_dist.runs import launches
from salsa_dist.runs.cost import Cost, cost
from salsa_dist.runs.failures import Failure, first_failure
from salsa_dist.runs.slurm_jobs import NO_ANSWER, SlurmJob, slurm_jobs

SILENT_S = 25.0  # nobody moves for so long, and for ten steps' time: hung; a rank beats in 10


@dataclass(frozen=True)
class Status:
    """A run, its newest job, and how both fare."""

    run: Path
    word: str
    detail: str = ""
    job: launches.Launch | None = None
    logs: Path | None = None
    failure: Failure | None = None
    cost: Cost | None = None
    waiting: list[str] = field(default_factory=list)
    """Of a hung run: each rank and where it stands."""
    unanswered: bool = False
    """Slurm did not answer: the job may wait or run."""

    @property
    def active(self) -> bool:
        return self.word in ("pending", "running", "hung")

    def refuse_unanswered(self) -> None:
        """Raises: UserError: it is not known whether the job waits or runs."""
        if self.unanswered and self.job is not None:
            raise UserError(
                f"Slurm does not answer, so job {self.job.job} of run {self.run} may still wait or "
                "run: try again in some minutes (squeue shows whether it answers)"
            )


def statuses(runs: Sequence[Path]) -> list[Status]:
    """The status of each of `runs`; Slurm is asked once for all of them."""
    jobs = {run: launches.read(run) for run in runs}
    newest = [found[-1][0] for found in jobs.values() if found]
    slurm = slurm_jobs([launch.job for launch in newest if launch.cluster == "slurm"])
    return [_status(run, jobs[run], slurm) for run in runs]


def status(run: Path) -> Status:
    return statuses([run])[0]


def _status(
    run: Path, jobs: list[tuple[launches.Launch, Path]], slurm: Mapping[str, SlurmJob]
) -> Status:
    spent = cost(run)
    if not jobs:
        word, detail = _by_files(run, spent)
        return _with_hang(Status(run, word, detail, cost=spent))
    launch, logs = jobs[-1]
    known = slurm.get(launch.job)
    if launch.cluster == "slurm":
        word, detail = _by_slurm(launch, logs, known, spent)
    else:
        word, detail = _by_launcher(launch, logs, spent)
    failure = first_failure(logs, launch.job) if word == "failed" else None
    found = Status(run, word, detail, launch, logs, failure, spent)
    return _with_hang(replace(found, unanswered=known is NO_ANSWER))


def _by_slurm(
    launch: launches.Launch, logs: Path, job: SlurmJob | None, spent: Cost | None
) -> tuple[str, str]:
    if job is NO_ANSWER:  # what its files say may be of a start before this one
        return "unknown", "Slurm does not answer"
    if job is None:
        if _done(launch, spent):
            return "finished", ""
        if any(failures(logs)):
            return "failed", "Slurm no longer knows the job"
        return "unknown", "Slurm does not know the job, or can't be asked from here"
    if job.waits:
        return "pending", job.reason
    if job.active:
        return "running", f"on {job.nodes}" if job.nodes else ""
    if job.state == "COMPLETED":
        return ("finished" if _done(launch, spent) else "stopped"), ""
    if job.state == "CANCELLED":
        return "cancelled", ""
    reason = f", {job.reason}" if job.reason else ""
    return "failed", f"Slurm says {job.state}{reason}" + (f", on {job.nodes}" if job.nodes else "")


def _by_launcher(launch: launches.Launch, logs: Path, spent: Cost | None) -> tuple[str, str]:
    code = launches.end_status(logs)
    if code is None:
        if launch.host != socket.gethostname():
            return "unknown", f"it runs on {launch.host}, ask there"
        if _lives(launch):
            return "running", f"process {launch.pid} on this machine"
        return "failed", "its launcher was killed"
    if code == 0:
        return ("finished" if _done(launch, spent) else "stopped"), ""
    if code > 128:
        return "cancelled", ""
    return "failed", f"the launcher ended with status {code}"


def _by_files(run: Path, spent: Cost | None) -> tuple[str, str]:
    if spent is None:
        return "unknown", "it has no events"
    if spent.finished:
        return "finished", ""
    silent_s = time.time() - spent.last_time
    if silent_s < _patience_s(spent) or any(rank["moved_s"] < SILENT_S for rank in _ranks(run)):
        return "running", "not started by the launcher"
    return "stopped", f"last event {silent_s / 60:.0f} minutes ago"


def _done(launch: launches.Launch, spent: Cost | None) -> bool:
    # Only training leaves an `end`; another command's job that Slurm calls completed is complete.
    return "train" not in launch.command.split("+") or (spent is not None and spent.finished)


def _lives(launch: launches.Launch) -> bool:
    """The launcher's process, and not another one that got its number later."""
    try:
        return psutil.Process(launch.pid).create_time() < launch.time + 1
    except psutil.Error:
        return False


def _patience_s(spent: Cost) -> float:
    return max(SILENT_S, 10 * spent.step_seconds)


def _with_hang(status: Status) -> Status:
    """`status`, or hung in place of running, with where each rank stands."""
    spent, ranks = status.cost, _ranks(status.run)
    if status.word != "running" or spent is None or spent.last_step is None or spent.finished:
        return status
    patience = _patience_s(spent)
    if status.job is not None and spent.last_time < status.job.time:
        return status  # events and ranks of an earlier job: this one still loads
    silent_s = time.time() - spent.last_time
    if silent_s < patience or any(rank["moved_s"] < patience for rank in ranks):
        return status
    detail = f"no step for {silent_s:.0f} s, where one takes {spent.step_seconds:.1f}"
    return replace(status, word="hung", detail=detail, waiting=[_where(rank) for rank in ranks])


def _ranks(run: Path) -> list[dict[str, Any]]:
    """The last report of each rank, and the seconds since it last made progress."""
    return [
        {**fields, "silent_s": silent_s, "moved_s": fields.get("since_s", 0.0) + silent_s}
        for fields, silent_s in silent_for(run)
    ]


def _where(rank: dict[str, Any]) -> str:
    step = rank.get("step")
    when = "before the first step" if step is None else f"in step {step + 1}"
    line = (
        f"rank {rank.get('rank')} (process {rank.get('pid')} on {rank.get('host')}) {when}, "
        f"{rank.get('phase')}, for {rank['moved_s']:.0f} s"
    )
    if rank["silent_s"] > SILENT_S:
        return f"{line}, and gives no sign of life"
    return line + "".join(f"\n    {frame}" for frame in rank.get("stack") or [])
