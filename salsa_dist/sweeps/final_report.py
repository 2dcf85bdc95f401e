"""The report of a comparison: its final rows side by side, from all their jobs.

SWEEP/report/comparison.html, .json, .csv, .tex; SWEEP/report/CORPUS/… where there are several corpora
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.report.comparison import Told
from salsa_dist.report.write import write_comparison
from salsa_dist.sweeps.choosing import chosen_tree
from salsa_dist.sweeps.plan import Plan


def write_final_report(plan: Plan) -> list[Path]:
    """Compare the final rows of a finished comparison. Returns the pages, one per corpus.

    Adapters that lie in the sweep's jobs and are no final row any more are left out.
    """
    sweep = plan.sweep
    where = {
        identity: (job.path, name)
        for job in plan.jobs()
        if job.done
        for name, identity in job.adapters.items()
    }
    notes = tuple(" ".join(part.split()) for part in sweep.file.report.notes.split("\n\n"))
    pages = []
    for corpus in sweep.corpora:
        names: dict[tuple[Path, str], str] = {}
        trials: list[Path] = []
        for experiment, identity in zip(sweep.experiments, plan.identities, strict=True):
            if experiment.corpus == corpus and experiment.stage == "final":
                names[where[identity]] = experiment.label
            elif experiment.corpus == corpus:
                trials.append(where[identity][0])
        runs = list(dict.fromkeys(run for run, _ in names))
        told = Told(
            title=sweep.file.report.title,
            notes=tuple(filter(None, notes)),
            tuning=chosen_tree(sweep, [c for c in plan.choices if c.corpus == corpus]),
            trials=tuple(dict.fromkeys(trials)),
        )
        out = sweep.file.sweep / "report" / corpus
        pages.append(write_comparison(runs, out, names=names, told=told))
    return pages
