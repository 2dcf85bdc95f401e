"""Several runs over one base, side by side: languages x methods, seeds averaged, tests between them.

    RUN, RUN, … ──read_entries──> [Entry] ──compare──> comparison.json, .csv, .tex, .html

    comparison
    ├── cells       one a method and language: mean rates over seeds, deviation, interval, gain, errors
    ├── mean        gain of each method over the languages that it was run on
    ├── tests       paired permutation tests of each method against the best, Holm-corrected a language
    ├── beside      each other method with the SALSA of the nearest number of trained numbers
    ├── by          cells again, of the parts that a field of the shards makes, such as age
    ├── forgetting  each adapter in the languages that it was not trained in
    ├── untouched   the base with adapters off beside the base without any
    ├── sites       gain of each choice of sites: layers alone, halves, thirds, LLM
    ├── minutes     gain against minutes of training speech
    ├── norms, cosines, losses     of what was trained
    ├── examples    utterances as each kind of method heard them
    ├── cost        of each run, tries among them
    └── title, notes, tuning       what a sweep says of itself, and what it tried on dev

The interval of several seeds is a bootstrap over speakers, or utterances where they are not known, of
their mean errors; so it tells of speakers, and the deviation of seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from salsa_dist.evaluation.transcripts import BARE, ZERO_SHOT
from salsa_dist.metrics import error_rates, normalise, significance
from salsa_dist.report import (
    examples,
    fields,
    paired,
    vector_facts,
)
from salsa_dist.report.entries import Entry, read_entries, read_runs, scored
from salsa_dist.report.run_files import RunFiles, read_run
from salsa_dist.runs.cost import cost

SCHEMA = "salsa-dist/comparison/4"
METRICS: tuple[error_rates.Metric, ...] = ("cer", "wer")
EXAMPLES = 2
"""Utterances of each kind, for one language."""
POINTS = 100
"""Of a loss curve, at most; more steps are averaged."""


@dataclass(frozen=True)
class Told:
    """What a sweep tells of the comparison of its runs.

    Attributes:
        title: of the page; None: made of the base's name.
        notes: paragraphs of its own, such as what was cut.
        tuning: what was tried on dev and what was chosen, as `chosen.json` has it.
        tries: folders of the runs that were tries.
    """

    title: str | None = None
    notes: tuple[str, ...] = ()
    tuning: Mapping[str, Any] | None = None
    tries: tuple[Path, ...] = ()


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
        names: by run and adapter, what it is compared as but for its minutes, others being left out;
            None: all adapters, by what was chosen of their method.
        told: what a sweep adds.

    Raises:
        UserError: a run is missing or damaged, or they are of different bases, splits or clips; or no
            clip has a field of `by`.
    """
    told = told or Told()
    files = read_runs(runs)
    everything = read_entries(runs, files, names)
    fields.refuse_unknown(by, (h for file in files for h in file.hypotheses))
    trained_in = {e.language for e in everything if e.method != ZERO_SHOT and not e.forgets}
    # Where forgetting was looked at, the base was heard in languages that have no method of their own.
    entries = [e for e in everything if not e.forgets and e.language in (trained_in or {e.language})]
    forgetful = {(e.method, e.window_s) for e in everything if e.forgets}
    cells = [_cell(entry, entries) for entry in entries]
    means = _mean_gains(cells)
    return {
        "schema": SCHEMA,
        "title": told.title,
        "notes": list(told.notes),
        "tuning": told.tuning,
        "base": files[0].start.base.model_dump(),
        "runs": [str(run) for run in runs],
        "split": files[0].config.evaluation.split,
        "cells": cells,
        "mean": means,
        "tests": [
            test
            for language in _languages(entries)
            for metric in METRICS
            for test in _tests(entries, language, metric)
        ],
        "beside": _beside(entries, means),
        "by": [row for name in by for row in _by(name, entries)],
        "forgetting": [
            _forgotten(e, everything) for e in everything if (e.method, e.window_s) in forgetful
        ],
        "untouched": [
            row for run, file in zip(runs, files, strict=True) for row in untouched(run, file)
        ],
        "sites": _sites(entries, cells),
        "minutes": _minutes(entries, cells),
        "norms": [
            {"language": e.language, "method": e.method, "norms": _mean_norms(e)}
            for e in entries
            if any(e.vectors.values())
        ],
        "cosines": _cosines(entries),
        "losses": [
            {"language": e.language, "method": e.method, "seed": seed, "points": _thinned(points)}
            for e in entries
            for seed, points in sorted(e.losses.items())
            if points
        ],
        "examples": [row for language in _languages(entries) for row in _examples(entries, language)],
        "cost": [
            *(_cost(Path(run), file, "final") for run, file in zip(runs, files, strict=True)),
            *(_cost(run, read_run(run), "try") for run in told.tries),
        ],
        "definitions": {
            "normaliser": normalise.NORMALISER,
            "interval": f"{error_rates.BOOTSTRAP} bootstrap of the mean over seeds, over speakers "
            "where two or more are known, else over utterances",
            "confidence": error_rates.CONFIDENCE,
            "resamples": error_rates.RESAMPLES,
            "test": "paired permutation of speakers' (else utterances') errors, two-sided, "
            "Holm-corrected within a language and table",
            "baseline": "of all zero-shot windows the one with the lowest rate on these very clips, "
            "which favours the baseline",
        },
    }


def untouched(run: Path | str, file: RunFiles) -> list[dict[str, Any]]:
    """The base's transcripts with adapters there but off, beside those of the base without any.

    One row a language and window, of a run that was evaluated with `evaluation.forgetting`.
    """
    found: dict[tuple[str, float], dict[str, dict[str, error_rates.Scored]]] = {}
    texts: dict[tuple[str, float], dict[str, dict[str, str]]] = {}
    for h in file.hypotheses:
        if h.adapter is None:
            place = h.language, h.window_s
            found.setdefault(place, {}).setdefault(h.method, {})[h.key] = scored(h)
            texts.setdefault(place, {}).setdefault(h.method, {})[h.key] = h.hypothesis
    rows = []
    for (language, window), own in sorted(found.items()):
        if BARE not in own or ZERO_SHOT not in own:
            continue
        off, bare = texts[language, window][ZERO_SHOT], texts[language, window][BARE]
        row: dict[str, Any] = {
            "run": str(run),
            "language": language,
            "window_s": window,
            "utterances": len(off),
            "same": sum(off[key] == bare.get(key) for key in off),
        }
        for metric in METRICS:
            for name, method in (("off", ZERO_SHOT), ("without", BARE)):
                row[f"{metric}_{name}"] = error_rates.corpus_rate(list(own[method].values()), metric)
        rows.append(row)
    return rows


def _cell(entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    seeds = list(entry.seeds.values())
    spoken = [u for u in entry.utterances if not u.empty_reference]
    speakers = len({u.speaker for u in spoken} - {None})
    cell: dict[str, Any] = {
        "language": entry.language,
        "method": entry.method,
        "kind": entry.kind,
        "window_s": entry.window_s,
        "trained_numbers": entry.trained,
        "minutes": entry.minutes,
        "seeds": sorted(entry.seeds),
        "unit": normalise.unit(entry.language),
        "utterances": len(entry.utterances),
        "speakers": speakers,
        "interval_over": "speakers" if speakers > 1 else "utterances",
        "runaways": sum(u.runaway for s in seeds for u in s.values()),
        "truncated": sum(u.truncated for s in seeds for u in s.values()),
        "empty": sum(u.empty_hypothesis for s in seeds for u in s.values()),
        "empty_references": len(entry.utterances) - len(spoken),
        "empty_reference_insertions": sum(
            u.words.insertions for s in seeds for u in s.values() if u.empty_reference
        ),
    }
    for metric in METRICS:
        rates = entry.rates(metric)
        low, high = paired.interval(entry, metric)
        baseline = _baseline(entries, entry.language, metric)
        gain: list[float | None] = [None, None, None]
        if baseline is not None and entry.method != ZERO_SHOT and rates:
            gain = paired.gain(baseline, entry, metric)
        cell[metric] = {
            "rate": mean(rates) if rates else None,
            "deviation": stdev(rates) if len(rates) > 1 else None,
            "low": low,
            "high": high,
            "gain": gain[0],
            "gain_low": gain[1],
            "gain_high": gain[2],
            "baseline_window_s": baseline.window_s if baseline else None,
            **_kinds_of_errors(entry, metric),
        }
    return cell


def _kinds_of_errors(entry: Entry, metric: error_rates.Metric) -> dict[str, float | None]:
    """Substitutions, deletions and insertions over the reference's tokens, means over seeds."""
    spoken = [
        u.edits(metric) for s in entry.seeds.values() for u in s.values() if not u.empty_reference
    ]
    length = sum(e.length for e in spoken)
    return {
        kind: sum(getattr(e, kind) for e in spoken) / length if length else None
        for kind in ("substitutions", "deletions", "insertions")
    }


def _baseline(entries: Sequence[Entry], language: str, metric: error_rates.Metric) -> Entry | None:
    """The better zero-shot of all windows, chosen on the very clips: that favours the baseline."""
    known = [e for e in entries if e.language == language and e.method == ZERO_SHOT and e.rates(metric)]
    return min(known, key=lambda e: e.rates(metric)[0], default=None)


def _tests(entries: Sequence[Entry], language: str, metric: error_rates.Metric) -> list[dict[str, Any]]:
    """Each method of a language against its best."""
    own = [e for e in entries if e.language == language and e.rates(metric)]
    if len(own) < 2:
        return []
    best = min(own, key=lambda e: mean(e.rates(metric)))
    others = [e for e in own if e is not best]
    raw = [paired.p_value(best, other, metric) for other in others]
    return [
        {
            "language": language,
            "metric": metric,
            "best": best.method,
            "best_window_s": best.window_s,
            "method": other.method,
            "window_s": other.window_s,
            "p": p,
        }
        for other, p in zip(others, significance.holm(raw), strict=True)
    ]


def _beside(entries: Sequence[Entry], means: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each other method, in each language, beside a SALSA of all its languages.

    That of the nearest number of trained numbers, by their ratio; beside what trains nothing, any. Of
    several the one with the highest mean gain.
    """
    found = {(e.language, e.method, e.window_s): e for e in entries if e.rates("cer")}
    whole = {e.method for e in entries if e.method == e.family}  # not of some of the speech
    rows: list[dict[str, Any]] = []
    for other in means:
        if other["kind"] == "salsa" or other["method"] not in whole:
            continue
        numbers = other["trained_numbers"]
        ours = [
            row
            for row in means
            if row["kind"] == "salsa"
            and row["method"] in whole
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
            rows.append(
                {
                    "language": language,
                    "method": other["method"],
                    "kind": other["kind"],
                    "trained_numbers": numbers,
                    "salsa": salsa["method"],
                    "salsa_trained_numbers": salsa["trained_numbers"],
                    "cer": mean(theirs.rates("cer")),
                    "salsa_cer": mean(own.rates("cer")),
                    "p": paired.p_value(own, theirs, "cer"),
                }
            )
    for language in _languages(entries):
        own_rows = [row for row in rows if row["language"] == language]
        for row, p in zip(own_rows, significance.holm([r["p"] for r in own_rows]), strict=True):
            row["p"] = p
    return rows


def _mean_gains(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def _by(name: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The cells of each value of a field."""
    rows = []
    for language in _languages(entries):
        own = [e for e in entries if e.language == language]
        facts = {key: h.fields for key, h in next(iter(own[0].texts.values())).items()}
        if not any(name in f for f in facts.values()):
            continue
        for value, keys in fields.by_value(name, facts):
            parts = [e.part(keys) for e in own]
            rows += [{"field": name, "value": value, **_cell(part, parts)} for part in parts]
    return rows


def _forgotten(entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    """One adapter's method in one language, beside the base's better zero-shot there."""
    row: dict[str, Any] = {
        "method": entry.method,
        "window_s": entry.window_s,
        "trained_in": "+".join(entry.learned),
        "language": entry.language,
        "seeds": sorted(entry.seeds),
    }
    for metric in METRICS:
        rates = entry.rates(metric)
        baseline = _baseline(entries, entry.language, metric)
        gain: list[float | None] = [None, None, None]
        if baseline is not None and rates:
            gain = paired.gain(baseline, entry, metric)
        row[metric] = {
            "rate": mean(rates) if rates else None,
            "zero_shot": baseline.rates(metric)[0] if baseline else None,
            "gain": gain[0],
            "gain_low": gain[1],
            "gain_high": gain[2],
        }
    return row


def _sites(entries: Sequence[Entry], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gain in CER of each choice of sites, of steering vectors; `layer` where it is one alone."""
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
        for e, c in zip(entries, cells, strict=True)
        if e.kind == "salsa" and e.method == e.family
    ]


def _minutes(entries: Sequence[Entry], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gain in CER against minutes of training speech, where a language has a method at several."""
    sizes: dict[tuple[str, str], set[float]] = defaultdict(set)
    for e in entries:
        if e.minutes is not None:
            sizes[e.language, e.family].add(e.minutes)
    return [
        {
            "language": e.language,
            "method": e.family,
            "sized": e.method,
            "minutes": e.minutes,
            **{kind: c["cer"][kind] for kind in ("gain", "gain_low", "gain_high")},
        }
        for e, c in zip(entries, cells, strict=True)
        if e.minutes is not None and e.method != ZERO_SHOT and len(sizes[e.language, e.family]) > 1
    ]


def _mean_norms(entry: Entry) -> dict[str, float]:
    """Length of each site's vector, the mean over seeds."""
    own = [vector_facts.norms(v) for v in entry.vectors.values()]
    return {site: mean(of[site] for of in own) for site in sorted(own[0], key=vector_facts.site_order)}


def _cosines(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Of each method between languages, the mean over pairs of seeds.

    Of a language with itself it is between its different seeds; None where there is one.
    """
    rows = []
    for method in dict.fromkeys(e.method for e in entries):
        own = sorted(
            (e for e in entries if e.method == method and any(e.vectors.values())),
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


def _thinned(points: Sequence[tuple[int, float | None]]) -> list[list[float]]:
    """(step, loss) of finite losses, means over as many steps as leave no more than POINTS."""
    finite = [(step, loss) for step, loss in points if loss is not None and math.isfinite(loss)]
    size = max(1, -(-len(finite) // POINTS))
    blocks = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [[round(mean(s for s, _ in b), 1), round(mean(x for _, x in b), 5)] for b in blocks]


def _examples(entries: Sequence[Entry], language: str) -> list[dict[str, Any]]:
    """Utterances of a language as the best of each kind of method heard them, its first seed's.

    Which are shown is decided by the zero-shot and the best method over all.
    """
    own = [e for e in entries if e.language == language and e.rates("wer")]
    zero_shot = _baseline(own, language, "wer")
    ordered = sorted(own, key=lambda e: mean(e.rates("wer")))
    rivals = [e for e in ordered if e.method != ZERO_SHOT]
    if zero_shot is None or not rivals:
        return []
    best_of_kind = list({e.kind: e for e in reversed(rivals)}.values())
    shown = [zero_shot, *sorted(best_of_kind, key=lambda e: mean(e.rates("wer")))]
    rows = []
    for kind, key in examples.chosen(zero_shot.utterances, rivals[0].utterances, EXAMPLES):
        heard = [(e, min(e.seeds)) for e in shown]
        rows.append(
            {
                "language": language,
                "key": key,
                "kind": kind,
                "reference": zero_shot.texts[0][key].reference,
                "tokens": zero_shot.seeds[0][key].words.length,
                "heard": [
                    {
                        "method": e.method,
                        "window_s": e.window_s,
                        "seed": seed if e.kind != ZERO_SHOT else None,
                        "errors": e.seeds[seed][key].words.errors,
                        "text": e.texts[seed][key].hypothesis,
                    }
                    for e, seed in heard
                ],
            }
        )
    return rows


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


def _languages(entries: Sequence[Entry]) -> list[str]:
    return sorted({e.language for e in entries})
