"""A sweep's jobs on Slurm as one array, or on this machine one after another.

    python launchers/slurm.py sweep demo/sweep.yaml --nodes 4

    sweep file ─► Plan (checked whole) ─► SWEEP/jobs/<id>/ ─► RankCommands ─┬─ slurm  sbatch --array,
                                                                            │         as many as fit
                                                                            └─ local  each to its end
    SWEEP/
    ├── array.sh              the newest array's batch script
    ├── snapshots/            the code that its jobs run
    └── jobs/<id>/            a run like any other, which `salsa-dist runs` shows
        ├── task.sh           what its task of the array runs
        ├── submit.sh         this job alone again: same code, same options
        └── logs/<array>_<task>/

`--nodes` is how many nodes the sweep may use at once, `--array-parallelism` how many jobs; nodes and
ranks of one job are in the sweep file. The same command submits what is missing, failed or was
stopped; jobs that wait or run are left alone. A task that fails is requeued without the others. A
comparison is submitted again: its trials, once these are done the final rows of what was chosen, and
once those are done the means of seeds.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from submitit.core.utils import DelayedSubmission, JobPaths

from salsa_dist.errors import UserError
from salsa_dist.launch.rank import RankCommand
from salsa_dist.launch.sbatch_script import TASK_SCRIPT, Sbatch, logs_of
from salsa_dist.log import log, result
from salsa_dist.runs import launches
from salsa_dist.runs.status import statuses
from salsa_dist.whole_file import replace_file, written_whole

if TYPE_CHECKING:  # they import torch, which a launch that is no sweep need not wait for
    from salsa_dist.sweeps.folder import JobFolder
    from salsa_dist.sweeps.plan import Plan


def planned(words: Sequence[str], nodes: int, device: str | None = None) -> Plan:
    """Show and return the plan of `sweep FILE`. Errors end here, before anything is written.

    Args:
        device: see `make_plan`.
    """
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.plan import make_plan

    if len(words) != 1:
        raise UserError("sweep takes one sweep file and no settings: write them under its overrides")
    plan = make_plan(load_sweep(Path(words[0])), nodes, device)
    if nodes < plan.sweep.file.jobs.nodes:
        raise UserError(
            f"--nodes {nodes}: one job of this sweep needs {plan.sweep.file.jobs.nodes} (jobs.nodes)"
        )
    result(plan.text())
    return plan


def at_once(plan: Plan, nodes: int, most: int | None) -> int:
    """The number of jobs that may run at the same time: as many as fit on `nodes`, at most `most`."""
    fit = max(1, nodes // plan.sweep.file.jobs.nodes)
    return fit if most is None else min(fit, most)


def submit(
    executor: Callable[[Path], Sbatch],
    job: RankCommand,
    plan: Plan,
    parallel: int,
    again: Callable[[JobFolder], None],
) -> int:
    """Submit all unfinished jobs as one array, one task per job.

    Args:
        executor: of the run with that folder.
        job: what each does but for its config.
        parallel: most jobs at the same time.
        again: writes the submit.sh of one.

    Returns: the number of jobs that were submitted.

    Raises:
        UserError: sbatch refuses it.
    """
    folders = _idle(plan.write())
    if not folders:
        result("nothing to submit: all is done, or their jobs wait or run")
        return 0
    sweep = plan.sweep.file.sweep.absolute()
    for folder in folders:  # never in place: a task of an earlier array may still read it
        replace_file(folder.path / TASK_SCRIPT, executor(folder.path).task_script())
        again(folder)
    (sweep / "logs").mkdir(parents=True, exist_ok=True)
    script = sweep / "array.sh"
    replace_file(script, executor(sweep).array_script([folder.path for folder in folders], parallel))
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"sbatch refused the sweep: {' '.join(done.stderr.split())}")
    # Some sites' sbatch says more than the number, and the cluster where there are several.
    numbers = re.findall(r"^(\d+)(?:;\S*)?$", done.stdout, re.MULTILINE)
    if len(numbers) != 1:
        said = " ".join(done.stdout.split())
        raise UserError(
            f"sbatch did not tell the sweep's job in its answer, {said!r}: scancel that job"
        )
    (array,) = numbers
    shape, minutes = plan.sweep.file.jobs, executor(sweep).minutes
    for number, folder in enumerate(folders):
        one = f"{array}_{number}"
        paths = JobPaths(logs_of(folder.path), one)
        paths.folder.mkdir(parents=True, exist_ok=True)
        own = _of(job, folder)
        launches.note(paths.folder, one, "slurm", own.command, shape.nodes, shape.ranks_per_node)
        delayed = DelayedSubmission(own)
        delayed.set_timeout(minutes, max_num_timeout=3)  # as submitit's own executor counts them
        with written_whole(paths.submitted_pickle) as part:  # its task waits for that
            delayed.dump(part)
        result(f"submitted job {one}: {folder.path.name}, {len(folder.adapters)} adapters")
    result(
        f"script  {script}\n"
        f"status  salsa-dist sweep status {plan.sweep.path}\n"
        f"runs    salsa-dist runs list --root {sweep / 'jobs'}\n"
        f"cancel  scancel {array}"
    )
    return len(folders)


def script(executor: Callable[[Path], Sbatch], plan: Plan, parallel: int) -> str:
    """The script that `submit` would pass to sbatch, and the work of each task; writes nothing."""
    sweep = plan.sweep.file.sweep.absolute()
    open_ = [job.path for job in plan.there if not job.done]
    runs = [*open_, *(sweep / "jobs" / f"NEW-{n}" for n in range(1, len(plan.new) + 1))]
    if not runs:
        return "# nothing to submit: all adapters are done"
    array = executor(sweep).array_script(runs, parallel)
    return f"{array}\n# --- and for each of them {TASK_SCRIPT}:\n{executor(runs[0]).task_script()}"


def run_here(
    run: Callable[[RankCommand, Path], int],
    job: RankCommand,
    plan: Plan,
    again: Callable[[JobFolder], None],
) -> int:
    """Run all unfinished jobs with `run`, one after another. A job that fails does not stop the others.

    Args:
        run: runs a job with that folder to its end; the launcher's exit status.
        again: writes the submit.sh of one.
    """
    from salsa_dist.sweeps.folder import write_results

    folders, worst = _idle(plan.write()), 0
    for number, folder in enumerate(folders, 1):
        log.info(f"job {number}/{len(folders)}: {folder.path.name}")
        again(folder)
        status = run(_of(job, folder), folder.path)
        if status > 128:  # a signal: the sweep was asked to stop
            return status
        if status:
            log.warning(f"{folder.path.name} failed; the other jobs continue")
        worst = max(worst, status)
    write_results(plan.sweep.file.sweep, plan.rows())
    return worst


def _idle(folders: Sequence[JobFolder]) -> list[JobFolder]:
    """The jobs that are not running and not waiting in the queue.

    Raises:
        UserError: Slurm does not answer. To submit them all would make two jobs of each that waits.
    """
    idle = []
    for folder, found in zip(folders, statuses([folder.path for folder in folders]), strict=True):
        found.refuse_unanswered()
        if found.job is not None and found.active:
            log.info(f"{folder.path.name} is {found.word} as job {found.job.job}: skipped")
        else:
            idle.append(folder)
    return idle


def _of(job: RankCommand, folder: JobFolder) -> RankCommand:
    return replace(job, command="+".join(folder.to_do()), config_path=str(folder.config.absolute()))
