"""The report of a comparison: its final rows side by side, whatever jobs they lie in.

SWEEP/report/comparison.html, .json, .csv, .tex; SWEEP/report/CORPUS/… where there are several corpora
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.evaluation.comparison_page import write_comparison
from salsa_dist.sweeps.folder import job_folders
from salsa_dist.sweeps.plan import Plan


def write_final_report(plan: Plan) -> list[Path]:
    """Compare the final rows of a finished comparison; the pages, one a corpus.

    Adapters that lie in the sweep's jobs and are no final row any more are left out.
    """
    sweep = plan.sweep
    where = {
        identity: (job.path, name)
        for job in job_folders(sweep.file.sweep)
        if job.done
        for name, identity in job.adapters.items()
    }
    pages = []
    for corpus in sweep.corpora:
        names: dict[tuple[Path, str], str] = {}
        for entry, identity in zip(sweep.entries, plan.identities, strict=True):
            if entry.stage == "final" and entry.corpus == corpus:
                names[where[identity]] = entry.label
        runs = list(dict.fromkeys(run for run, _ in names))
        pages.append(write_comparison(runs, sweep.file.sweep / "report" / corpus, names=names))
    return pages
