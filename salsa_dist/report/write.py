"""Reports as files: a page to read, JSON for programs, CSV for spreadsheets, LaTeX for papers.

RUN        ──write_report──────> RUN/report.html, .json, .csv, .tex
                                 RUN/report-by.csv                          where there are such rows
RUN, RUN … ──write_comparison──> OUT/comparison.html, .json, .csv, .tex
                                 OUT/comparison-by.csv, -forgetting.csv     where there are such rows
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.report import tables
from salsa_dist.report.comparison import Told, compare
from salsa_dist.report.one_run import read_report
from salsa_dist.report.page import comparison_page, report_page
from salsa_dist.whole_file import replace_file


def write_report(run: Path, by: Sequence[str] = ()) -> Path:
    """Write the report of one run into its folder; gives the path of the page.

    Args:
        by: fields of the shards' samples, such as age, whose values get rows of their own.

    Raises:
        UserError: a file of the run is missing or damaged, no clip has a field of `by`, or `run` can't
            be written.
    """
    report = read_report(run, by)
    tree = report.json
    texts = {f"{name}.csv": text for name, text in tables.report_csv(tree).items()}
    if tree["results"]:
        texts["report.tex"] = tables.report_latex(tree)
    return _write(Path(run), "report", {**texts, "report.html": report_page(report)}, tree)


def write_comparison(
    runs: Sequence[Path],
    out: Path,
    by: Sequence[str] = (),
    names: Mapping[tuple[Path, str], str] | None = None,
    told: Told | None = None,
) -> Path:
    """Compare `runs` and write the files into `out`; gives the path of the page.

    Args:
        by: as in `write_report`.
        names, told: as in `compare`.

    Raises:
        UserError: the runs can't be compared, no clip has a field of `by`, or `out` can't be written.
    """
    tree = compare(runs, by, names, told)
    texts = {f"{name}.csv": text for name, text in tables.comparison_csv(tree).items()}
    texts |= {
        "comparison.tex": tables.comparison_latex(tree),
        "comparison.html": comparison_page(tree),
    }
    return _write(out, "comparison", texts, tree)


def _write(out: Path, name: str, texts: Mapping[str, str], tree: Mapping[str, Any]) -> Path:
    as_json = json.dumps(tree, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, text in {f"{name}.json": as_json, **texts}.items():
            replace_file(out / file, text)
    except OSError as e:
        raise UserError(f"the {name} can't be written to {out} ({e.strerror})") from e
    return out / f"{name}.html"
