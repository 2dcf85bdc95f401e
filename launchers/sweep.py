"""A sweep's jobs on Slurm as one array, or on this machine one after another.

    python launchers/slurm.py sweep demo/sweep.yaml --nodes 4

    sweep file ─► Plan (checked whole) ─► SWEEP/jobs/<id>/ ─► one Job each ─┬─ slurm  sbatch --array,
                                                                            │         as many as fit
                                                                            └─ local  each to its end
    logs: SWEEP/logs/<job id>/

`--nodes` is how many nodes the sweep may use at once; those of one job are in the sweep file. The same
command submits what is missing or was stopped, and nothing else: don't call it while its jobs run. A
comparison is submitted twice: its tries, and once these are done the final rows of what was chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import Job

from salsa_dist.errors import UserError

if TYPE_CHECKING:  # they import torch, which a launch that is no sweep need not wait for
    from salsa_dist.sweeps.folder import JobFolder
    from salsa_dist.sweeps.plan import Plan


def planned(words: Sequence[str], nodes: int) -> Plan:
    """The plan of `sweep FILE`, shown; what is wrong with it ends here, before anything is written."""
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.plan import make_plan

    if len(words) != 1:
        raise UserError("sweep takes one sweep file and no settings: write them under its overrides")
    plan = make_plan(load_sweep(Path(words[0])), nodes)
    if nodes < plan.sweep.file.jobs.nodes:
        raise UserError(
            f"--nodes {nodes}: one job of this sweep needs {plan.sweep.file.jobs.nodes} (jobs.nodes)"
        )
    print(plan.text(), flush=True)
    return plan


def submit(executor: Any, job: Job, plan: Plan, nodes: int) -> list[Any]:
    """Submit all that is to be done as one array.

    Args:
        executor: a submitit executor with the resources of one job.
        job: what each does but for its config.
        nodes: that may be used at once.
    """
    folders = plan.write()
    if not folders:
        print("nothing to submit: all is done")
        return []
    executor.update_parameters(array_parallelism=max(1, nodes // plan.sweep.file.jobs.nodes))
    submitted: list[Any] = executor.submit_array([_of(job, folder) for folder in folders])
    for one, folder in zip(submitted, folders, strict=True):
        print(f"submitted job {one.job_id}: {folder.path.name}, {len(folder.adapters)} adapters")
    print(f"status  salsa-dist sweep status {plan.sweep.path}")
    return submitted


def run_here(run: Callable[[Job], int], job: Job, plan: Plan) -> int:
    """Run all that is to be done by `run`, one job after another; one that fails ends no other."""
    from salsa_dist.sweeps.folder import write_results

    folders, worst = plan.write(), 0
    for number, folder in enumerate(folders, 1):
        print(f"job {number}/{len(folders)}: {folder.path.name}", flush=True)
        status = run(_of(job, folder))
        if status > 128:  # a signal: the sweep was asked to stop
            return status
        if status:
            print(f"{folder.path.name} failed, the others go on", file=sys.stderr)
        worst = max(worst, status)
    write_results(plan.sweep.file.sweep, plan.rows())
    return worst


def _of(job: Job, folder: JobFolder) -> Job:
    return replace(job, command="+".join(folder.to_do()), config_path=str(folder.config), overrides=())
