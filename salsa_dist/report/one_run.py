"""The report of one run: a comparison whose methods are its adapters, and what only one run has.

    RUN/… ──read_run──> RunFiles ──┬─ tree_of ───> cells, tests, cost, … as in comparison.json
                                   ├─ _facts ────> adapters, training, placement, evaluation, …
                                   └─ _older ────> the same numbers by the keys of report/1

    report/1
    ├── results      one row per language, split, adapter (null: zero-shot) and window
    ├── gains        one per adapter, language that it learned, split and metric
    ├── forgetting   the same for the languages that it did not learn
    ├── by           results again, of the parts that a field of the shards makes, such as age
    ├── examples     utterances before and after
    ├── norms        {adapter: {site: length of its vector}}
    └── cosines      {adapter: {adapter: cosine of their vectors}}

All rates and gains are fractions. A run that was not evaluated has empty results, gains, examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salsa_dist.metrics import normalise
from salsa_dist.report import examples, fields
from salsa_dist.report.cases import Case, read_cases
from salsa_dist.report.comparison import Told, notes_of, parts, plain, tree_of
from salsa_dist.report.results import Result, results_of
from salsa_dist.report.run_files import RunFiles, read_run
from salsa_dist.run.events import BadSample
from salsa_dist.runs.cost import cost
from salsa_dist.steering import vector_facts

SCHEMA = "salsa-dist/report/1"
_COUNTS = (
    *("substitutions", "deletions", "insertions", "runaways", "truncated", "empty_references"),
    *("empty_reference_insertions", "empty_hypotheses", "speakers"),
)
_GAINS = {"low": "relative_low", "high": "relative_high"}
EXAMPLES = 3
"""Utterances of each kind, for one adapter."""


@dataclass(frozen=True)
class Report:
    """A run's report.

    Attributes:
        tree: as in comparison.json, its examples those of each adapter.
        facts: what only one run has.
        older: the keys of report/1; where one is in `tree` too, report.json has it from here.
    """

    tree: dict[str, Any]
    facts: dict[str, Any]
    older: dict[str, Any]
    config_text: str

    @property
    def json(self) -> dict[str, Any]:
        return {**self.tree, **self.facts, **self.older}


def read_report(run: Path, by: Sequence[str] = ()) -> Report:
    """Read and score `run`.

    Args:
        by: fields of the shards' samples, such as age, whose values get rows of their own.

    Raises:
        UserError: a file of the run is missing or damaged, or no clip has a field of `by`.
    """
    run = Path(run)
    files = read_run(run)
    fields.refuse_unknown(by, files.hypotheses)
    cases = read_cases([run], [files], each=True)
    found = results_of(cases)
    by_parts = parts(cases, by)
    adapters = [r for r in plain(found) if r.gains]
    notes = _window_notes(files, cases) + notes_of(cases, found) + _data_notes(files)
    if not cases:
        notes.append("not evaluated yet: `salsa-dist evaluate CONFIG` adds error rates and gains")
    tree = {
        **tree_of([run], [files], found, by_parts, Told()),
        "notes": notes,
        "examples": [
            {"adapter": r.case.adapter, "split": r.case.split, **row}
            for r in adapters
            for row in examples.of_cases(cases, [r.case], EXAMPLES)
        ],
    }
    return Report(tree, _facts(run, files), _older(files, found, by_parts, tree), files.config_text)


def build_report(run: Path, by: Sequence[str] = ()) -> dict[str, Any]:
    """The tree of `report.json`; as `read_report`."""
    return read_report(run, by).json


def _facts(run: Path, files: RunFiles) -> dict[str, Any]:
    return {
        "adapters": [
            {
                "name": a.name,
                "language": a.language,
                "rule": a.rule,
                "sites": a.sites,
                "silence_stride": a.silence_stride,
                "trained_numbers": a.trained_numbers,
                "trained_parameters": a.trained_numbers,  # its name in report/1
                "file": a.file,
                "file_bytes": a.file_bytes,
            }
            for a in files.adapters
        ],
        "placement": files.placement.model_dump() if files.placement else None,
        "training": _training(run, files),
        "evaluation": files.evaluation.model_dump() if files.evaluation else None,
        "environment": files.start.environment,
    }


def _older(
    files: RunFiles,
    found: Sequence[Result],
    by_parts: Sequence[tuple[str, str, Result]],
    tree: dict[str, Any],
) -> dict[str, Any]:
    own = [a for a in files.adapters if a.vectors]
    gains = [(r, row) for r in found for row in _gains(r)]
    return {
        "schema": SCHEMA,
        "results": [_row(r) for r in found],
        "gains": [row for r, row in gains if not r.case.forgets],
        "forgetting": [row for r, row in gains if r.case.forgets],
        "by": [{"field": name, "value": value, **_row(r)} for name, value, r in by_parts],
        "examples": [
            {
                **row,
                "method": files.config.method.kind,
                "ref_words": row["tokens"],
                "zero_shot_errors": row["heard"][0]["errors"],
                "steered_errors": row["heard"][1]["errors"],
                "zero_shot": row["heard"][0]["text"],
                "steered": row["heard"][1]["text"],
            }
            for row in tree["examples"]
        ],
        "norms": {a.name: vector_facts.norms(a.vectors) for a in own},
        "cosines": {
            a.name: {b.name: vector_facts.cosine(a.vectors, b.vectors) for b in own} for a in own
        }
        if len(own) > 1
        else {},
    }


def _row(result: Result) -> dict[str, Any]:
    s = result.summary
    return {
        **_who(result),
        "unit": normalise.unit(result.case.language),
        "utterances": s.utterances,
        "ref_words": s.ref_words,
        "wer": s.wer.rate,
        "wer_low": s.wer.low,
        "wer_high": s.wer.high,
        "cer": s.cer.rate,
        "cer_low": s.cer.low,
        "cer_high": s.cer.high,
        **{name: getattr(s, name) for name in _COUNTS},
    }


def _who(result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "adapter": case.adapter,
        "language": case.language,
        "method": case.kind,
        "window_s": case.window_s,
        "split": case.split,
    }


def _gains(result: Result) -> list[dict[str, Any]]:
    """A row per metric."""
    return [
        {
            **_who(result),
            "metric": metric,
            "baseline_window_s": result.baselines[metric].window_s,
            **{_GAINS.get(name, name): value for name, value in vars(gain).items()},
        }
        for metric, gain in sorted(result.gains.items(), reverse=True)  # words first
    ]


def _window_notes(files: RunFiles, cases: Sequence[Case]) -> list[str]:
    """Notes that name adapters whose training window differs from their evaluation window."""
    trained = {a.name: a.window_s for a in files.adapters}
    apart: dict[tuple[float, float], list[str]] = {}
    for case in cases:
        own = trained.get(case.adapter or "")
        if own is not None and case.compared and not math.isclose(own, case.window_s):
            names = apart.setdefault((own, case.window_s), [])
            names += [case.adapter] if case.adapter and case.adapter not in names else []
    return [
        f"{', '.join(names)}: trained at an audio window of {own:g} s, scored at {scored:g} s. "
        f"Adapters may do less at another window: evaluation.windows_s: [{own:g}] scores them at theirs"
        for (own, scored), names in apart.items()
    ]


def _data_notes(files: RunFiles) -> list[str]:
    """Notes about training and dev clips that were not used."""
    notes = [
        f"{data.adapter}: {data.left_out} clips longer than the audio window were not trained on"
        for data in files.data
        if data.left_out
    ]
    if bad := files.bad_samples:
        notes.append(
            f"{len(bad)} samples could not be used ({_kinds(bad)}); others were used in their place; "
            "events.jsonl names them"
        )
    if bad := files.bad_dev_clips:
        notes.append(
            f"{len(bad)} dev clips could not be used ({_kinds(bad)}) and are not in the dev losses; "
            "events.jsonl names them"
        )
    return notes


def _kinds(bad: Sequence[BadSample]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(b.kind for b in bad).most_common())


def _training(run: Path, files: RunFiles) -> dict[str, Any]:
    spent = cost(run)
    seconds = sum(step.seconds for step in files.steps)
    measured = [(s.audio_seconds, s.padding or 0.0) for s in files.steps if s.audio_seconds]
    padded = sum(audio / (1 - padding) for audio, padding in measured)

    def mean(name: str) -> float | None:
        own = [(s.seconds, getattr(s, name)) for s in files.steps if getattr(s, name) is not None]
        whole = sum(spent_s for spent_s, _ in own)
        return sum(spent_s * value for spent_s, value in own) / whole if whole else None

    loss: dict[str, list[list[float | None]]] = {a.name: [] for a in files.adapters}
    for step in files.steps:
        for name, of in step.adapters.items():
            # A step without a finite loss was skipped; JSON has no NaN.
            finite = of.loss is not None and math.isfinite(of.loss)
            loss.setdefault(name, []).append([step.step, of.loss if finite else None])
    dev: dict[str, dict[str, list[list[float]]]] = {"dev_loss": {}, "cer": {}, "wer": {}, "mer": {}}
    for measured_on in files.dev:
        for kind, curves in dev.items():
            for name, found in getattr(measured_on, kind).items():
                curves.setdefault(name, []).append([measured_on.step, found])
    return {
        "steps": len(files.steps),
        "seconds": seconds,
        "device": spent.device if spent else None,
        "device_hours": spent.device_hours if spent else None,
        "clips_per_second": sum(step.clips for step in files.steps) / seconds if seconds else None,
        "audio_per_second": sum(a for a, _ in measured) / seconds if measured and seconds else None,
        "tokens_per_second": mean("tokens_per_second"),
        "mfu": mean("mfu"),
        "peak_memory": max((s.peak_memory for s in files.steps if s.peak_memory), default=None),
        "starts": files.starts,
        "padding": 1 - sum(audio for audio, _ in measured) / padded if padded else None,
        "data_wait": mean("data_wait"),
        "left_out": {data.adapter: data.left_out for data in files.data},
        "bad_samples": dict(Counter(bad.kind for bad in files.bad_samples)),
        "store": files.store.model_dump() if files.store else None,
        "loss": loss,
        "dev_loss": dev.pop("dev_loss"),
        "dev_rates": {kind: curves for kind, curves in dev.items() if curves},
        "best": {name: step for measured_on in files.dev for name, step in measured_on.best.items()},
    }
