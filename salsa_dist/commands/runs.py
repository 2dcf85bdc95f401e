"""`salsa-dist runs`: list, status, logs, cancel and resume runs, on Slurm and on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salsa_dist.columns import aligned
from salsa_dist.errors import UserError
from salsa_dist.log import result
from salsa_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from salsa_dist.runs.status import Status

app = typer.Typer(help="List, monitor, cancel and resume runs.", no_args_is_help=True)

POLL_S = 1.0
ASK_S = 10.0  # between two questions to Slurm while following

Name = Annotated[str, typer.Argument(help="name of a run, as shown by `runs list`, or its folder")]
Root = Annotated[Path, typer.Option(help="folder of the runs")]


@app.command("list")
def list_runs(root: Root = Path("runs")) -> None:
    """List all runs with their state and step."""
    from salsa_dist.runs.find import runs
    from salsa_dist.runs.status import statuses

    found = statuses(runs(root))
    if not found:
        result(f"no runs in {root}")
    rows = []
    for status in found:
        step = "" if status.cost is None or status.cost.last_step is None else status.cost.last_step + 1
        job = status.job.job if status.job else "-"
        rows.append((str(status.run.relative_to(root)), status.word, job, f"{step}", status.detail))
    if rows:
        rows.insert(0, ("run", "state", "job", "step", ""))
    for line in aligned(rows):
        result(line)


@app.command()
def status(name: Name, root: Root = Path("runs")) -> None:
    """Show the state and cost of a run, why it failed, and the phase of each rank that waits.

    The exit status is 1 if it failed or hangs.
    """
    from salsa_dist.runs.find import find
    from salsa_dist.runs.status import status as status_of

    found = status_of(find(name, root))
    _tell(found)
    if found.word in ("failed", "hung"):
        sys.exit(1)


@app.command()
def logs(
    name: Name,
    rank: Annotated[int, typer.Option(min=0, help="rank whose log is shown")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="follow the log until the job ends")
    ] = False,
    root: Root = Path("runs"),
) -> None:
    """Show the log of one rank of a run's newest job."""
    from salsa_dist.runs.failures import log_paths
    from salsa_dist.runs.find import find
    from salsa_dist.runs.follow import Follower
    from salsa_dist.runs.status import status as status_of

    run = find(name, root)
    found = status_of(run)
    if found.job is None or found.logs is None:
        raise UserError(f"run {run} has no logs: it was not started by salsa-dist launch")
    if rank >= found.job.ranks:
        raise UserError(
            f"job {found.job.job} has {found.job.ranks} ranks, the last is {found.job.ranks - 1}"
        )
    out, err = log_paths(found.logs, found.job.job, rank)
    if not follow and not (out.exists() or err.exists()):
        raise UserError(f"job {found.job.job} is {found.word} and has no log of rank {rank} yet")
    followers = [Follower(out, sys.stdout), Follower(err, sys.stderr)]
    asked = time.monotonic()
    while True:
        # Asked before the last look, so that nothing is missed.
        over = not (found.active or found.unanswered)
        for follower in followers:
            follower.pump()
        if over or not follow:
            break
        time.sleep(POLL_S)
        if time.monotonic() - asked > ASK_S:
            found, asked = status_of(run), time.monotonic()
    if follow:
        _tell(found)
        if found.word == "failed":
            sys.exit(1)


@app.command()
def cancel(name: Name, root: Root = Path("runs")) -> None:
    """Stop a run's job. The ranks save after the current step; `resume` continues from there."""
    from salsa_dist.runs import slurm_jobs
    from salsa_dist.runs.find import find
    from salsa_dist.runs.status import status as status_of

    found = status_of(find(name, root))
    found.refuse_unanswered()
    if not found.active or found.job is None:
        raise UserError(f"run {found.run} is {found.word}: there is no job to cancel")
    if found.job.cluster == "slurm":
        if said := slurm_jobs.cancel(found.job.job):
            raise UserError(f"job {found.job.job} could not be cancelled: {said}")
    else:
        os.kill(found.job.pid, signal.SIGTERM)  # the launcher lets its ranks save
    result(f"asked job {found.job.job} to end")


@app.command()
def resume(name: Name, root: Root = Path("runs")) -> None:
    """Repeat the last launch of a run; it resumes from its newest checkpoint."""
    from salsa_dist.runs.find import find
    from salsa_dist.runs.status import status as status_of

    found = status_of(find(name, root))
    found.refuse_unanswered()
    if found.active:
        job = f" as job {found.job.job}" if found.job else ""
        raise UserError(f"run {found.run} is {found.word}{job}: cancel it first")
    script = RunFolder(found.run).submit
    if not script.is_file():
        raise UserError(
            f"run {found.run} has no submit.sh: start it with the command that it was started with"
        )
    sys.exit(subprocess.run([str(script.absolute())], check=False).returncode)


def _tell(found: Status) -> None:
    job = f"  job {found.job.job}" if found.job else ""
    detail = f"  ({found.detail})" if found.detail else ""
    result(f"{found.run}: {found.word}{job}{detail}")
    for line in found.waiting:
        result(f"  {line}")
    if found.failure is not None:
        who = "" if found.failure.rank is None else f"rank {found.failure.rank} failed first:"
        if who:
            result(who)
        result("\n".join(f"  {line}" for line in found.failure.text.splitlines()))
        result(f"log     {found.failure.log}")
    elif found.logs is not None:
        result(f"logs    {found.logs}")
    if found.cost is not None:
        result(f"cost    {found.cost.text}")
    over = not (found.active or found.unanswered)
    if over and found.word != "finished" and RunFolder(found.run).submit.is_file():
        result(f"again   salsa-dist runs resume {found.run}")
