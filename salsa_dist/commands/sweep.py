"""`salsa-dist sweep plan | run | status`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from salsa_dist.log import log, result

app = typer.Typer(help="Train a grid of adapters in few jobs.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="YAML file of the sweep, such as demo/sweep.yaml")]


@app.command()
def plan(
    file: FileArgument,
    nodes: Annotated[int, typer.Option(min=1, help="nodes available at once")] = 1,
) -> None:
    """Check a sweep and show its jobs and their cost; write nothing."""
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.plan import make_plan

    result(make_plan(load_sweep(file), nodes).text())
    result(f"here       salsa-dist sweep run {file}")
    result(f"on Slurm   salsa-dist launch sweep {file} --nodes {nodes}")


@app.command()
def run(file: FileArgument) -> None:
    """Run the unfinished jobs of a sweep on this machine; the same command resumes it.

    A comparison runs its trials, chooses settings, trains and evaluates the final rows, and writes the
    report.
    """
    from salsa_dist.sweeps.folder import write_results
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.local_jobs import run_jobs
    from salsa_dist.sweeps.plan import make_plan

    sweep = load_sweep(file)
    made = make_plan(sweep)
    log.info(made.text())
    shape = sweep.file.jobs
    while jobs := made.write():
        try:
            code = run_jobs(jobs, shape.nodes * shape.ranks_per_node, shape.at_once)
        finally:
            write_results(sweep.file.sweep, made.rows())
        if code:
            sys.exit(code)
        made = make_plan(sweep)
        for choice in made.choices:
            if choice.chosen and len(choice.trials) > 1:
                log.info(f"{choice.method}, {', '.join(choice.languages)}: {choice.chosen.tried}")
    write_results(sweep.file.sweep, made.rows())
    result(f"results: {sweep.file.sweep / 'results.csv'}")
    if sweep.file.methods:
        from salsa_dist.sweeps.final_report import write_final_report

        for page in write_final_report(made):
            result(f"report: {page}")


@app.command()
def status(file: FileArgument) -> None:
    """Show the progress of each adapter and its job, and write the table of results."""
    from salsa_dist.metrics.error_rates import CHOSEN_BY
    from salsa_dist.runs.status import statuses
    from salsa_dist.sweeps.folder import write_results
    from salsa_dist.sweeps.grid import load_sweep
    from salsa_dist.sweeps.plan import make_plan

    made = make_plan(load_sweep(file))
    rows = made.rows()
    write_results(made.sweep.file.sweep, rows)
    width = max((len(row["name"]) for row in rows), default=0)
    by = made.sweep.file.rate
    shown = ("train loss", "train_loss"), ("dev loss", "dev_loss"), (by.upper(), CHOSEN_BY[by])
    steps_of = {experiment.name: experiment.steps for experiment in made.sweep.experiments}
    for row in rows:
        steps = row["steps"] or 0
        losses = "  ".join(f"{what} {row[key]:.3f}" for what, key in shown if row[key] is not None)
        total = steps_of[row["name"]] or made.sweep.config.training.steps
        result(f"{row['name']:{width}}  {row['state']:8} {steps}/{total}  {losses}".rstrip())
    states = [row["state"] for row in rows]
    result(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    chosen = [c for c in made.choices if len(c.trials) > 1]
    if chosen:
        result(f"chosen: {sum(c.chosen is not None for c in chosen)} of {len(chosen)}")
    if made.later:
        waiting = sum(len(p.experiments) for p in made.later)
        result(f"{waiting} final rows wait for jobs: run the sweep once more when they are done")
    open_ = [job.path for job in made.there if not job.done]
    for found in statuses(open_):
        number = f"  job {found.job.job}" if found.job else ""
        detail = f"  ({found.detail})" if found.detail else ""
        result(f"{found.run.name}: {found.word}{number}{detail}")
        if found.failure is not None:
            result(f"  {found.failure.text.splitlines()[-1]}\n  log {found.failure.log}")
