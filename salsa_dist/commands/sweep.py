"""`salsa-dist sweep plan | run | status`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train a grid of adapters in few jobs.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="YAML file of the sweep, such as demo/sweep.yaml")]


@app.command()
def plan(
    file: FileArgument,
    nodes: Annotated[int, typer.Option(min=1, help="nodes that jobs can run on at once")] = 1,
) -> None:
    """Check a sweep, show its jobs and what they cost; nothing is written."""
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.plan import make_plan

    print(make_plan(load_sweep(file), nodes).text())
    print(f"here       salsa-dist sweep run {file}")
    print(f"on Slurm   python launchers/slurm.py sweep {file} --nodes {nodes}")


@app.command()
def run(file: FileArgument) -> None:
    """Train what is missing on this machine, job after job; the same command goes on after a stop."""
    from salsa_dist.sweeps.folder import write_results
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.local_jobs import run_jobs
    from salsa_dist.sweeps.plan import make_plan

    made = make_plan(load_sweep(file))
    print(made.text(), flush=True)
    jobs = made.sweep.file.jobs
    try:
        code = run_jobs(made.write(), jobs.nodes * jobs.ranks_per_node)
    finally:
        write_results(made.sweep.file.sweep, made.rows())
    if code:
        sys.exit(code)
    print(f"results: {made.sweep.file.sweep / 'results.csv'}")


@app.command()
def status(file: FileArgument) -> None:
    """Show how far each adapter is and how its job fares, and write the table of results."""
    from salsa_dist.runs.status import statuses
    from salsa_dist.sweeps.folder import write_results
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.plan import make_plan

    made = make_plan(load_sweep(file))
    rows = made.rows()
    write_results(made.sweep.file.sweep, rows)
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        steps = row["steps"] or 0
        losses = "  ".join(
            f"{what} {row[key]:.3f}"
            for what, key in (("train loss", "train_loss"), ("dev loss", "dev_loss"))
            if row[key] is not None
        )
        total = made.sweep.config.training.steps
        print(f"{row['name']:{width}}  {row['state']:8} {steps}/{total}  {losses}".rstrip())
    states = [row["state"] for row in rows]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    open_ = [job.path for job in made.there if not job.done]
    for found in statuses(open_):
        number = f"  job {found.job.job}" if found.job else ""
        detail = f"  ({found.detail})" if found.detail else ""
        print(f"{found.run.name}: {found.word}{number}{detail}")
        if found.failure is not None:
            print(f"  {found.failure.text.splitlines()[-1]}\n  log {found.failure.log}")
