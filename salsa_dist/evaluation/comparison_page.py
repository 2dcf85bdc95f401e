"""A comparison as files: one HTML page, JSON for programs, CSV for spreadsheets, LaTeX for papers.

comparison ──write_comparison──> OUT/comparison.html, .json, .csv, .tex
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from salsa_dist.errors import UserError
from salsa_dist.evaluation import plots
from salsa_dist.evaluation.comparison import ZERO_SHOT, compare
from salsa_dist.evaluation.pages import page_environment, percent


def write_comparison(
    runs: Sequence[Path], out: Path, names: Mapping[tuple[Path, str], str] | None = None
) -> Path:
    """Compare `runs` and write the files into `out`; gives the path of the page.

    `names` is as in `compare`.
    """
    comparison = compare(runs, names)
    texts = {
        "json": json.dumps(comparison, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "csv": as_csv(comparison),
        "tex": as_latex(comparison),
        "html": render(comparison),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            (out / f"comparison.{ending}").write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(f"the comparison can't be written to {out} ({e.strerror})") from None
    return out / "comparison.html"


def render(comparison: Mapping[str, Any]) -> str:
    """The page: one file that needs no other."""
    return (
        page_environment()
        .get_template("comparison.html")
        .render(
            c=comparison,
            best=_best(comparison["cells"]),
            languages=sorted({cell["language"] for cell in comparison["cells"]}),
            tests={
                (t["language"], t["method"], t["window_s"]): t["p"]
                for t in comparison["tests"]
                if t["metric"] == "cer"
            },
            figures={name: Markup(svg) for name, svg in _figures(comparison).items()},
        )
    )


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line a language, method and window; rates and gains as fractions."""
    out = io.StringIO()
    fields = ("rate", "deviation", "low", "high", "gain", "gain_low", "gain_high")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["language", "method", "window_s", "trained_numbers", "seeds", "utterances"]
        + [f"{metric}_{field}" for metric in ("cer", "wer") for field in fields]
    )
    for cell in comparison["cells"]:
        writer.writerow(
            [cell["language"], cell["method"], cell["window_s"], cell["trained_numbers"]]
            + [len(cell["seeds"]), cell["utterances"]]
            + [cell[metric][field] for metric in ("cer", "wer") for field in fields]
        )
    return out.getvalue()


def as_latex(comparison: Mapping[str, Any]) -> str:
    """A table of CER, methods by languages, the best of a language in bold."""
    cells = comparison["cells"]
    languages = sorted({cell["language"] for cell in cells})
    best = _best(cells)
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for cell in cells:
        rate = cell["cer"]["rate"]
        text = percent(rate)
        if cell["cer"]["deviation"] is not None:
            text += rf" $\pm$ {percent(cell['cer']['deviation'])}"
        if rate is not None and best.get((cell["language"], "cer")) == rate:
            text = rf"\textbf{{{text}}}"
        rows[f"{cell['method']} ({cell['window_s']:g} s)"][cell["language"]] = text
    lines = [rf"\begin{{tabular}}{{l{'r' * len(languages)}}}", r"\toprule"]
    lines.append(" & ".join(["CER in \\%", *map(_latex, languages)]) + r" \\")
    lines.append(r"\midrule")
    for name, own in rows.items():
        lines.append(" & ".join([_latex(name), *(own.get(x, "--") for x in languages)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _best(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    best: dict[tuple[str, str], float] = {}
    for cell in cells:
        for metric in ("wer", "cer"):
            if cell[metric]["rate"] is not None:
                place = cell["language"], metric
                best[place] = min(cell[metric]["rate"], best.get(place, math.inf))
    return best


def _figures(comparison: Mapping[str, Any]) -> dict[str, str]:
    alone = {(row["language"], row["method"]) for row in comparison["layers"]}
    rows: dict[str, list[plots.Point]] = defaultdict(list)
    gains: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for cell in comparison["cells"]:
        cer = cell["cer"]
        # Layers steered alone have a figure of their own.
        if cer["rate"] is not None and (cell["language"], cell["method"]) not in alone:
            label = cell["method"] + (
                f", {cell['window_s']:g} s" if cell["method"] == ZERO_SHOT else ""
            )
            rows[cell["language"]].append(plots.Point(label, cer["rate"], cer["low"], cer["high"]))
        if cer["gain"] is not None and cell["trained_numbers"]:
            family = cell["method"].partition(",")[0].partition(" of ")[0]
            gains[family].append((cell["trained_numbers"], cer["gain"]))
    figures = {}
    if rows:
        figures["cer"] = plots.error_rates("CER", list(rows.items()))
    if gains:
        figures["numbers"] = plots.gain_by_numbers(gains)
    layers: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in comparison["layers"]:
        if row["gain"] is not None:
            layers[row["language"]].append((row["layer"], row["gain"]))
    if layers:
        figures["layers"] = plots.layer_curve(layers)
    return figures


def _latex(text: str) -> str:
    return "".join(f"\\{c}" if c in "#$%&_{}" else c for c in text)
