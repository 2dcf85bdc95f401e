"""Reports as tables: CSV for spreadsheets, LaTeX for papers. Their numbers are the JSON's. The
normaliser is a CSV's last column and a LaTeX file's first line.

comparison ──comparison_csv──> {"comparison": text, "comparison-by": …, "comparison-forgetting": …,
                                "comparison-mixed": …, "comparison-scales": …}
           ──comparison_latex> error rates, and gains; methods by languages, the best in bold
report     ──report_csv──────> {"report": text, "report-by": …, "report-mixed": …, "report-scales": …}
           ──report_latex────> a row per language, adapter and window
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from salsa_dist.metrics.error_rates import METRICS
from salsa_dist.report.numbers import percent

RATES = ("rate", "deviation", "low", "high", "gain", "gain_low", "gain_high")
FORGETTING = ("rate", "zero_shot", "gain", "gain_low", "gain_high")
ERRORS = ("substitutions", "deletions", "insertions")
_COUNTS = (
    *("utterances", "speakers", "interval_over", "runaways", "truncated", "empty"),
    *("empty_references", "empty_reference_insertions"),
)


def comparison_csv(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Text of each file by its name; rates and gains as fractions. Files without rows are left out."""
    tests = {
        (t["language"], t["method"], t["window_s"], t["metric"]): t["p"] for t in comparison["tests"]
    }
    files = {"comparison": [_line(cell, tests) for cell in comparison["cells"]]}
    files["comparison-by"] = [
        {"field": row["field"], "value": row["value"], **_line(row, {})} for row in comparison["by"]
    ]
    files["comparison-forgetting"] = [
        {
            **{k: row[k] for k in ("trained_in", "language", "method", "window_s")},
            "seeds": len(row["seeds"]),
            **{f"{metric}_{k}": row[metric][k] for metric in ("cer", "wer") for k in FORGETTING},
        }
        for row in comparison["forgetting"]
    ]
    files["comparison-mixed"] = _mixed(comparison["cells"])
    files["comparison-scales"] = comparison["scales"]
    return _texts(files, comparison)


def report_csv(report: Mapping[str, Any]) -> dict[str, str]:
    """Like `comparison_csv`, for the rows of report.json."""
    files = {"report": report["results"], "report-by": report["by"]}
    files["report-scales"] = report["scales"]
    return _texts({**files, "report-mixed": _mixed(report["cells"])}, report)


def _mixed(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per part of mixed speech: its languages and its switch points."""
    head = ("language", "split", "method", "window_s")
    return [
        {**{k: cell[k] for k in head}, "part": name, **part}
        for cell in cells
        for name, part in cell["parts"].items()
    ]


def _texts(files: Mapping[str, Sequence[Mapping[str, Any]]], tree: Mapping[str, Any]) -> dict[str, str]:
    said = {"normaliser": tree["definitions"]["normaliser"]}
    return {name: _csv([{**row, **said} for row in rows]) for name, rows in files.items() if rows}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV of rows with the same keys, with a header; unknown values are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def comparison_latex(comparison: Mapping[str, Any]) -> str:
    """Three tables: CER; the rate over each language's own unit; gain in CER, with its intervals."""
    cells = comparison["cells"]
    languages = sorted({cell["language"] for cell in cells})
    rule = {cell["language"]: own_rate(cell["unit"]) for cell in cells}
    tables = [_rates(cells, "cer", "CER in %", languages)]
    if set(rule.values()) != {"CER"}:
        heads = [f"{x} ({rule[x]})" for x in languages]
        tables.append(_rates(cells, "wer", "error rate in %", languages, heads))
    rows = [
        [name, *(_gain(own[x]["cer"]) if x in own else "--" for x in languages)]
        for name, own in _by_method(cells)
        if any(cell["cer"]["gain"] is not None for cell in own.values())
    ]
    if rows:
        tables.append(latex_table(["gain in CER, %", *languages], rows))
    return _normaliser(comparison) + "\n".join(tables)


def report_latex(report: Mapping[str, Any]) -> str:
    """The results as one table, the best of each language and split in bold."""
    best: dict[tuple[str, ...], float] = {}
    for row, metric in product(report["results"], METRICS):
        if row[metric] is not None:
            best[place(row, metric)] = min(row[metric], best.get(place(row, metric), math.inf))
    rows = []
    for row in report["results"]:
        line = [f"{row['language']}, {row['adapter'] or row['method']}, {row['window_s']:g} s"]
        for metric in ("wer", "cer"):
            text = latex_percent(row[metric])
            if row[metric] is not None and row[metric] == best[place(row, metric)]:
                text = rf"\textbf{{{text}}}"
            if row[f"{metric}_low"] is not None:
                ends = (latex_percent(row[f"{metric}_{end}"]) for end in ("low", "high"))
                text += f" ({'--'.join(ends)})"
            line.append(text)
        rows.append(line)
    rule = "/".join(sorted({own_rate(row["unit"]) for row in report["results"]}, reverse=True))
    return _normaliser(report) + latex_table(["language, method, window", f"{rule}, %", "CER, %"], rows)


def _normaliser(tree: Mapping[str, Any]) -> str:
    return f"% normaliser: {tree['definitions']['normaliser']}\n"


def place(cell: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    """The key of cells whose rates are compared with each other."""
    return cell["language"], cell["split"], metric


def best_rates(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], float]:
    """The lowest rate by `place`."""
    best: dict[tuple[str, str, str], float] = {}
    for cell in cells:
        for metric in ("wer", "cer"):
            rate = cell[metric]["rate"]
            if rate is not None:
                best[place(cell, metric)] = min(rate, best.get(place(cell, metric), math.inf))
    return best


def own_rate(unit: str) -> str:
    """The name of the rate over a language's own tokens."""
    return {"word": "WER", "character": "CER", "mixed": "MER"}[unit]


def latex_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs table. The first column and the head are text; the other cells are LaTeX already."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines.append(" & ".join(map(latex, head)) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join([latex(first), *others]) + r" \\" for first, *others in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """`text` with what LaTeX would take for commands escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "#$%&_{}" else c) for c in text)


def latex_percent(fraction: float | None) -> str:
    """The same number as on the page, with LaTeX's minus sign."""
    return percent(fraction).replace("–", "--").replace("−", "$-$")


def _line(cell: Mapping[str, Any], tests: Mapping[Any, float]) -> dict[str, Any]:
    head = {k: cell[k] for k in ("language", "method", "window_s", "trained_numbers", "minutes")}
    line = {**head, "seeds": len(cell["seeds"]), "unit": cell["unit"]}
    line |= {k: cell[k] for k in _COUNTS}
    for metric in ("cer", "wer"):
        line |= {f"{metric}_{k}": cell[metric][k] for k in (*RATES, *ERRORS)}
        line[f"{metric}_p"] = tests.get((cell["language"], cell["method"], cell["window_s"], metric))
    return line


def _by_method(
    cells: Sequence[Mapping[str, Any]],
) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(f"{cell['method']} ({cell['window_s']:g} s)", {})[cell["language"]] = cell
    return list(rows.items())


def _rates(
    cells: Sequence[Mapping[str, Any]],
    metric: str,
    title: str,
    languages: Sequence[str],
    heads: Sequence[str] | None = None,
) -> str:
    best = best_rates(cells)
    rows = []
    for name, own in _by_method(cells):
        row = [name]
        for language in languages:
            cell = own.get(language)
            row.append(_rate(cell[metric], best.get(place(cell, metric))) if cell else "--")
        rows.append(row)
    return latex_table([title, *(heads or languages)], rows)


def _rate(rate: Mapping[str, Any], best: float | None) -> str:
    """The rate and its deviation; the best is bold and shows its interval."""
    text = latex_percent(rate["rate"])
    if rate["deviation"] is not None:
        text += rf" $\pm$ {latex_percent(rate['deviation'])}"
    if rate["rate"] is None or rate["rate"] != best:
        return text
    bold = rf"\textbf{{{text}}}"
    if rate["low"] is None or rate["high"] is None:
        return bold
    return f"{bold} ({latex_percent(rate['low'])}--{latex_percent(rate['high'])})"


def _gain(rate: Mapping[str, Any]) -> str:
    if rate["gain_low"] is None or rate["gain_high"] is None:
        return latex_percent(rate["gain"])
    ends = f"{latex_percent(rate['gain_low'])} to {latex_percent(rate['gain_high'])}"
    return f"{latex_percent(rate['gain'])} ({ends})"
