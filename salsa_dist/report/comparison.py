"""Runs over one base, side by side: languages x methods, seeds averaged, tests between methods.

RUN, RUN, … ──read_cases──> [Case] ──results_of──> [Result] ──tree_of──> comparison.json
                                                              and, for one run, report.json

comparison
├── cells       per method and language: mean rates over seeds, deviation, interval, gain, errors;
│               `parts`: in mixed speech the rates of each language and at switch points
├── mean        gain of each method over the languages that it was run on
├── tests       paired permutation tests of each method against the best, Holm-corrected
├── beside      each other method with the SALSA of the nearest number of trained numbers
├── by          cells again, of the parts that a field of the shards makes, such as age
├── forgetting  each adapter in the languages that it was not trained in
├── scales      error rates of adapters by the scale of their vectors
├── untouched   the base with adapters off beside the base without any
├── sites       gain of each choice of sites: single layers, halves, thirds, LLM
├── minutes     gain against minutes of training speech
├── steps       gain against training steps
├── norms, cosines, losses     of what was trained
├── examples    utterances, as each kind of method transcribed them
├── cost        of each run, trials among them
└── title, notes, tuning       what a sweep says of itself, and what it tried on dev
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from salsa_dist.evaluation.transcripts import BARE, ZERO_SHOT, Hypothesis
from salsa_dist.metrics import intervals, normalise
from salsa_dist.metrics.error_rates import METRICS, corpus_rate
from salsa_dist.report import examples, fields, results, scales
from salsa_dist.report.cases import Case, read_cases, read_runs, scored
from salsa_dist.report.results import Result, cell_of, results_of
from salsa_dist.report.run_files import RunFiles, read_run
from salsa_dist.runs.cost import cost
from salsa_dist.steering import vector_facts

SCHEMA = "salsa-dist/comparison/4"
POINTS = 100
"""Of a loss curve, at most; more steps are averaged."""
DEFINITIONS = {
    "interval": f"{intervals.BOOTSTRAP} bootstrap of the mean over seeds, over speakers "
    "where two or more are known, else over utterances",
    "confidence": intervals.CONFIDENCE,
    "resamples": intervals.RESAMPLES,
    "seed": intervals.SEED,
    "test": "paired permutation of speakers' (else utterances') errors, two-sided, "
    "Holm-corrected within a language and table",
    "baseline": "of all zero-shot windows the one with the lowest rate on these very clips, "
    "which favours the baseline",
}


@dataclass(frozen=True)
class Told:
    """Facts that a sweep adds to the comparison of its runs.

    Attributes:
        title: of the page; None: made of the base's name.
        notes: paragraphs of its own, such as what was cut.
        tuning: what was tried on dev and what was chosen, as `chosen.json` has it.
        trials: folders of the runs that were trials.
    """

    title: str | None = None
    notes: tuple[str, ...] = ()
    tuning: Mapping[str, Any] | None = None
    trials: tuple[Path, ...] = ()


def compare(
    runs: Sequence[Path],
    by: Sequence[str] = (),
    names: Mapping[tuple[Path, str], str] | None = None,
    told: Told | None = None,
) -> dict[str, Any]:
    """The tree of `comparison.json`.

    Args:
        runs: folders of runs.
        by: fields of the shards' samples whose values get rows of their own.
        names: by run and adapter, what it is compared as but for its minutes and steps, others being
            left out; None: all adapters, by what was chosen of their method.
        told: what a sweep adds.

    Raises:
        UserError: a run is missing or damaged, or they are of different bases, splits or clips; or no
            clip has a field of `by`.
    """
    told = told or Told()
    files = read_runs(runs)
    fields.refuse_unknown(by, (h for file in files for h in file.hypotheses))
    cases = read_cases(runs, files, names)
    found = results_of([e for e in cases if e.compared])
    tree = tree_of(runs, files, found, parts([r.case for r in plain(found)], by), told)
    return {**tree, "notes": [*told.notes, *notes_of(cases, found)]}


def tree_of(
    runs: Sequence[Path],
    files: Sequence[RunFiles],
    found: Sequence[Result],
    by: Sequence[tuple[str, str, Result]],
    told: Told,
) -> dict[str, Any]:
    """The content of a report of one or several runs, without its notes."""
    rules = normalise.Rules.of(files[0].config.evaluation)
    shown = plain(found)
    own = [result for result in shown if result.case.compared]
    cases, cells = [result.case for result in own], [cell_of(result) for result in own]
    means = results.mean_gains(cells)
    return {
        "schema": SCHEMA,
        "title": told.title,
        "notes": [],
        "tuning": told.tuning,
        "base": files[0].start.base.model_dump(),
        "runs": [str(run) for run in runs],
        "split": files[0].config.evaluation.split,
        "cells": [cell_of(result) for result in shown],
        "mean": means,
        "tests": results.tests(own),
        "beside": results.beside(own, means),
        "by": [{"field": name, "value": value, **cell_of(part)} for name, value, part in by],
        "forgetting": [
            {**cell_of(result), "trained_in": "+".join(result.case.learned)}
            for result in forgetting(found)
        ],
        "scales": [
            row for run, file in zip(runs, files, strict=True) for row in scales.rows_of(run, file)
        ],
        "untouched": [
            row for run, file in zip(runs, files, strict=True) for row in untouched(run, file)
        ],
        "sites": _sites(cases, cells),
        "minutes": _curve("minutes", cases, cells),
        "steps": _curve("steps", cases, cells),
        "norms": [
            {"language": e.language, "method": e.method, "norms": _mean_norms(e)}
            for e in cases
            if any(e.vectors.values())
        ],
        "cosines": _cosines(cases),
        "losses": [
            {"language": e.language, "method": e.method, "seed": seed, "points": thinned(points)}
            for e in cases
            for seed, points in sorted(e.losses.items())
            if points
        ],
        "examples": [
            row
            for language in sorted({e.language for e in cases})
            for row in examples.of_language([e for e in cases if e.language == language])
        ],
        "cost": [
            *(_cost(Path(run), file, "final") for run, file in zip(runs, files, strict=True)),
            *(_cost(run, read_run(run), "try") for run in told.trials),
        ],
        "scoring": asdict(rules),
        "definitions": {"normaliser": str(rules), **DEFINITIONS},
    }


def plain(found: Sequence[Result]) -> list[Result]:
    """The results in languages that a method was trained in; all results if nothing was trained."""
    learned = {r.case.language for r in found if r.case.method != ZERO_SHOT and not r.case.forgets}
    # Where forgetting was measured, the base was decoded in languages that have no method of their own.
    return [r for r in found if not r.case.forgets and (r.case.language in learned or not learned)]


def forgetting(found: Sequence[Result]) -> list[Result]:
    """All results of methods that were decoded in languages that they were not trained in."""
    ours = {(r.case.method, r.case.window_s) for r in found if r.case.forgets and r.case.compared}
    return [r for r in found if (r.case.method, r.case.window_s) in ours]


def parts(cases: Sequence[Case], by: Sequence[str]) -> list[tuple[str, str, Result]]:
    """(field, value, result) of each value of each field, in each language that has it."""
    made = []
    for name, language in product(by, sorted({e.language for e in cases})):
        own = [e for e in cases if e.language == language]
        facts = {key: h.fields for e in own for texts in e.texts.values() for key, h in texts.items()}
        if any(name in f for f in facts.values()):
            for value, keys in fields.by_value(name, facts):
                made += [(name, value, r) for r in results_of([e.part(keys) for e in own])]
    return made


def notes_of(cases: Sequence[Case], found: Sequence[Result]) -> list[str]:
    """Why some methods have no gain, and whether transcripts were cut off."""
    notes = []
    groups: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
    for e in cases:
        if e.method != ZERO_SHOT:
            groups[e.method, e.language, e.split].append(e)
    zero_shot = {(e.language, e.split) for e in cases if e.method == ZERO_SHOT}
    for (method, language, split), own in groups.items():
        what = f"no gain for {method} ({language}, {split})"
        if (language, split) not in zero_shot:
            notes.append(f"{what}: it has no zero-shot row to be compared with")
        elif not any(e.compared for e in own):
            windows = ", ".join(f"{e.window_s:g} s" for e in own)
            notes.append(
                f"{what}: decoded at {windows}, none of which is known to be the window it is "
                "compared at; set base.window_s or add it to evaluation.windows_s"
            )
    if truncated := sum(r.summary.truncated for r in found):
        cut, its = ("hypothesis was", "its") if truncated == 1 else ("hypotheses were", "their")
        notes.append(
            f"{truncated} {cut} cut off at the token limit while still shorter than {its} reference: "
            "a larger evaluation.max_new_tokens may lower the error rates"
        )
    return notes


def untouched(run: Path | str, file: RunFiles) -> list[dict[str, Any]]:
    """The base's transcripts with adapters off, compared with those of the base without any adapter.

    One row per language and window, of a run that was evaluated with `evaluation.forgetting`.
    """
    rules = normalise.Rules.of(file.config.evaluation)
    found: dict[tuple[str, float], dict[str, dict[str, Hypothesis]]] = defaultdict(dict)
    for h in file.hypotheses:
        if h.adapter is None:
            found[h.language, h.window_s].setdefault(h.method, {})[h.key] = h
    rows = []
    for (language, window), own in sorted(found.items()):
        if BARE in own and ZERO_SHOT in own:
            off, bare = own[ZERO_SHOT], own[BARE]
            same = sum(key in bare and h.hypothesis == bare[key].hypothesis for key, h in off.items())
            row: dict[str, Any] = {"run": str(run), "language": language, "window_s": window}
            row |= {"utterances": len(off), "same": same}
            for name, of in (("off", off), ("without", bare)):
                utterances = [scored(h, rules) for h in of.values()]
                row |= {f"{metric}_{name}": corpus_rate(utterances, metric) for metric in METRICS}
            rows.append(row)
    return rows


def _sites(cases: Sequence[Case], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gain in CER of each choice of sites, of steering vectors; `layer` where it is a single one."""
    return [
        {
            "language": e.language,
            "method": e.method,
            "rule": e.rule,
            "sites": e.sites,
            "component": e.layer[0] if e.layer else None,
            "layer": e.layer[1] if e.layer else None,
            **{kind: c["cer"][kind] for kind in ("gain", "gain_low", "gain_high")},
        }
        for e, c in zip(cases, cells, strict=True)
        if e.rule and not e.smaller
    ]


def _curve(of: str, cases: Sequence[Case], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gain in CER against `minutes` of training speech or `steps`, where a language has several.

    The other of the two is at its largest.
    """
    shown = [not (e.few_steps if of == "minutes" else e.few_minutes) for e in cases]
    places: dict[tuple[str, str], set[float]] = defaultdict(set)
    for e, counts in zip(cases, shown, strict=True):
        if counts and getattr(e, of) is not None:
            places[e.language, e.family].add(getattr(e, of))
    return [
        {
            "language": e.language,
            "method": e.family,
            "sized": e.method,
            of: getattr(e, of),
            **{kind: c["cer"][kind] for kind in ("gain", "gain_low", "gain_high")},
        }
        for e, c, counts in zip(cases, cells, shown, strict=True)
        if counts
        and getattr(e, of) is not None
        and e.method != ZERO_SHOT
        and len(places[e.language, e.family]) > 1
    ]


def _mean_norms(case: Case) -> dict[str, float]:
    """Length of each site's vector, the mean over seeds."""
    own = [vector_facts.norms(v) for v in case.vectors.values()]
    return {site: mean(of[site] for of in own) for site in sorted(own[0], key=vector_facts.site_order)}


def _cosines(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Cosines of each method between languages, as the mean over pairs of seeds.

    Of a language with itself it is between its different seeds; None where there is one.
    """
    rows = []
    for method in dict.fromkeys(e.method for e in cases):
        own = sorted(
            (e for e in cases if e.method == method and any(e.vectors.values())),
            key=lambda e: e.language,
        )
        for a, b in product(own, own) if len(own) > 1 else ():
            pairs = [
                vector_facts.cosine(x, y)
                for s, x in a.vectors.items()
                for t, y in b.vectors.items()
                if a is not b or s != t
            ]
            known = [c for c in pairs if c is not None]
            rows.append(
                {
                    "method": method,
                    "language": a.language,
                    "other": b.language,
                    "cosine": mean(known) if known else None,
                }
            )
    return rows


def thinned(points: Sequence[tuple[int, float | None]]) -> list[list[float]]:
    """(step, loss) of finite losses, means over as many steps as leave no more than POINTS."""
    finite = [(step, loss) for step, loss in points if loss is not None and math.isfinite(loss)]
    size = max(1, -(-len(finite) // POINTS))
    blocks = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [[round(mean(s for s, _ in b), 1), round(mean(x for _, x in b), 5)] for b in blocks]


def _cost(run: Path, file: RunFiles, stage: str) -> dict[str, Any]:
    spent = cost(run)
    return {
        "run": str(run),
        "stage": stage,
        "method": file.config.method.kind,
        "adapters": len(file.config.adapters),
        "steps": len(file.steps),
        "device": spent.device if spent else None,
        "training_seconds": sum(step.seconds for step in file.steps),
        "training_device_hours": spent.device_hours if spent else None,
        "evaluation_seconds": file.evaluation.seconds if file.evaluation else None,
        "evaluation_device_hours": file.evaluation.device_hours if file.evaluation else None,
    }
