"""The numbers of each case, compared with zero-shot and with other methods.

[Case, …] ──results_of──> [Result, …] ──cell_of──> a cell of the JSON
                                ├── mean_gains   methods by their mean gain over languages
                                ├── tests        each method of a language against its best
                                └── beside       each other method with a SALSA of its size
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from statistics import mean
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.evaluation.transcripts import ZERO_SHOT
from salsa_dist.methods.registry import steers
from salsa_dist.metrics import normalise, significance
from salsa_dist.metrics.error_rates import METRICS, Metric
from salsa_dist.metrics.summary import Gain, Summary, gain, p_value, rates, summarise
from salsa_dist.report.cases import Case

_COUNTS = (
    *("utterances", "ref_words", "speakers", "runaways", "truncated"),
    *("empty_references", "empty_reference_insertions"),
)
_CHANGES = {
    "gain": "relative",
    "gain_low": "low",
    "gain_high": "high",
    **{name: name for name in ("improved", "unchanged", "worse")},
}
_P_NAMES: dict[Metric, str] = {"cer": "p", "wer": "p_wer"}  # in a row of `beside`


@dataclass(frozen=True)
class Result:
    """The numbers of one case.

    Attributes:
        baselines: by metric, the zero-shot of the lowest rate over all windows. It is chosen on the
            very clips that are compared, which favours the baseline: a gain errs to the low side.
        gains: by metric, over that baseline; none for zero-shot and for windows that aren't compared.
    """

    case: Case
    summary: Summary
    baselines: Mapping[Metric, Case]
    gains: Mapping[Metric, Gain]


def results_of(cases: Sequence[Case]) -> list[Result]:
    """The result of each case, in the same order.

    Raises:
        UserError: a case and its zero-shot were decoded on different clips.
    """
    made = []
    for case in cases:
        baselines: dict[Metric, Case] = {}
        gains: dict[Metric, Gain] = {}
        for metric in METRICS:
            baseline = best_zero_shot(cases, case, metric)
            if baseline is None:
                continue
            baselines[metric] = baseline
            if case.method != ZERO_SHOT and case.compared and rates(case.seeds, metric):
                with _named(case, baseline):
                    gains[metric] = gain(baseline.seeds, case.seeds, metric)
        made.append(Result(case, summarise(case.seeds), baselines, gains))
    return made


def best_zero_shot(cases: Sequence[Case], like: Case, metric: Metric) -> Case | None:
    """The zero-shot case of the lowest rate in the language and split of `like`."""
    known = [
        e
        for e in cases
        if e.method == ZERO_SHOT
        and (e.language, e.split) == (like.language, like.split)
        and rates(e.seeds, metric)
    ]
    return min(known, key=lambda e: rates(e.seeds, metric)[0], default=None)


def cell_of(result: Result) -> dict[str, Any]:
    case, s = result.case, result.summary
    cell: dict[str, Any] = {
        "language": case.language,
        "split": case.split,
        "method": case.method,
        "kind": case.kind,
        "window_s": case.window_s,
        "trained_numbers": case.trained,
        "minutes": case.minutes,
        "smaller": case.smaller,
        "averaged": case.averaged,
        "seeds": sorted(case.seeds),
        "unit": normalise.unit(case.language),
        **{name: getattr(s, name) for name in _COUNTS},
        "empty": s.empty_hypotheses,
        "interval_over": "speakers" if s.speakers > 1 else "utterances",
    }
    for metric in METRICS:
        own, baseline = result.gains.get(metric), result.baselines.get(metric)
        cell[metric] = {
            **asdict(s.cer if metric == "cer" else s.wer),
            **{name: getattr(own, of) if own else None for name, of in _CHANGES.items()},
            "zero_shot": rates(baseline.seeds, metric)[0] if baseline else None,
            "baseline_window_s": baseline.window_s if baseline else None,
        }
    cell["parts"] = {name: asdict(part) for name, part in s.parts.items()}
    return cell


def mean_gains(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Methods by their mean gain in CER, the best first."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell["method"] != ZERO_SHOT:
            groups[cell["method"], cell["window_s"]].append(cell)
    made = []
    for (method, window), own in groups.items():
        row: dict[str, Any] = {
            "method": method,
            "kind": own[0]["kind"],
            "window_s": window,
            "languages": sorted(c["language"] for c in own),
            "seeds": sorted({len(c["seeds"]) for c in own}),
            "trained_numbers": max(c["trained_numbers"] for c in own),
        }
        for metric in METRICS:
            gains = [c[metric]["gain"] for c in own if c[metric]["gain"] is not None]
            row[metric] = mean(gains) if gains else None
        made.append(row)
    return sorted(made, key=lambda row: -(row["cer"] if row["cer"] is not None else -math.inf))


def tests(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Tests of each method of a language against the best method, for either metric."""
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for result in results:
        if result.case.compared:
            groups[result.case.language, result.case.split].append(result.case)
    rows: list[dict[str, Any]] = []
    for (language, split), cases in groups.items():
        for metric in METRICS:
            own = [e for e in cases if rates(e.seeds, metric)]
            if len(own) < 2:
                continue
            best = min(own, key=lambda e: mean(rates(e.seeds, metric)))
            others = [e for e in own if e is not best]
            raw = [_p(best, other, metric) for other in others]
            rows += [
                {
                    "language": language,
                    "split": split,
                    "metric": metric,
                    "best": best.method,
                    "best_window_s": best.window_s,
                    "method": other.method,
                    "window_s": other.window_s,
                    "p": p,
                }
                for other, p in zip(others, significance.holm(raw), strict=True)
            ]
    return rows


def beside(results: Sequence[Result], means: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each other method, in each language, with a SALSA row of the same languages.

    That of the nearest number of trained numbers, by their ratio; beside what trains nothing, any. Of
    several the one with the highest mean gain. A mean of seeds' vectors, of several trainings, is none.
    """
    cases = [result.case for result in results]
    found = {(e.language, e.method, e.window_s): e for e in cases if rates(e.seeds, "cer")}
    whole = {e.method for e in cases if not e.smaller}
    averaged = {e.method for e in cases if e.averaged}
    rows: list[dict[str, Any]] = []
    for other in means:
        if steers(other["kind"], trained=True) or other["method"] not in whole:
            continue
        numbers = other["trained_numbers"]
        ours = [
            row
            for row in means
            if steers(row["kind"], trained=True)
            and row["method"] in whole - averaged
            and row["cer"] is not None
            and set(other["languages"]) <= set(row["languages"])
        ]
        if not ours:
            continue
        salsa = min(
            ours,
            key=lambda row: (
                abs(math.log(row["trained_numbers"] / numbers)) if numbers else 0.0,
                -row["cer"],
            ),
        )
        for language in other["languages"]:
            theirs = found.get((language, other["method"], other["window_s"]))
            own = found.get((language, salsa["method"], salsa["window_s"]))
            if theirs is None or own is None:
                continue
            row: dict[str, Any] = {
                "language": language,
                "method": other["method"],
                "kind": other["kind"],
                "trained_numbers": numbers,
                "salsa": salsa["method"],
                "salsa_trained_numbers": salsa["trained_numbers"],
            }
            for metric, p_name in _P_NAMES.items():
                both = rates(theirs.seeds, metric), rates(own.seeds, metric)
                row[metric], row[f"salsa_{metric}"] = (mean(x) if x else None for x in both)
                row[p_name] = _p(own, theirs, metric) if all(both) else None
            rows.append(row)
    for language, p_name in product(sorted({e.language for e in cases}), _P_NAMES.values()):
        tested = [row for row in rows if row["language"] == language and row[p_name] is not None]
        for row, p in zip(tested, significance.holm([r[p_name] for r in tested]), strict=True):
            row[p_name] = p
    return rows


def _p(one: Case, other: Case, metric: Metric) -> float:
    with _named(one, other):
        return p_value(one.seeds, other.seeds, metric)


@contextmanager
def _named(one: Case, other: Case) -> Iterator[None]:
    """Errors say which two were compared."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{one.language}: {one.method} and {other.method} were {e}") from e
