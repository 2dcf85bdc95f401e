"""What one run learned, cost and gained: `RUN/report.json` for programs, `RUN/report.html` to read.

    RUN/… ──read_run──> RunFiles ──build_report──> dict ──> report.json, report.csv, report.tex
                                                    └─ report.html (template) + plots ──> report.html

    report
    ├── schema, base, adapters, environment, definitions, notes
    ├── training     steps, seconds, clips_per_second, starts, loss {adapter: [[step, loss], …]}
    ├── placement    as measured; null if the run did not say
    ├── evaluation   cost of decoding; null if not known
    ├── results      one row for each language, split, method, adapter and window
    ├── gains        one for each adapter, language that it learned, split, method and metric
    ├── forgetting   the same for the languages that it did not learn
    ├── untouched    the base with adapters off beside the base without any
    ├── by           results again, of the parts that a field of the shards makes, such as age
    ├── examples     utterances before and after, see `_examples`
    ├── norms        {adapter: {site: length of its vector}}
    └── cosines      {adapter: {adapter: cosine of their vectors}}

All rates and gains are fractions. A run that was not evaluated has empty results, gains, examples.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from salsa_dist.config import Config
from salsa_dist.errors import UserError
from salsa_dist.evaluation.transcripts import BARE, ZERO_SHOT
from salsa_dist.metrics import error_rates, normalise
from salsa_dist.report import examples, fields, plots, tables, vector_facts
from salsa_dist.report.comparison import untouched
from salsa_dist.report.entries import scored
from salsa_dist.report.pages import page_environment
from salsa_dist.report.run_files import Hypothesis, RunFiles, read_run
from salsa_dist.runs.cost import cost

SCHEMA = "salsa-dist/report/1"
EXAMPLES = 3
"""Examples of each kind, for one adapter."""


class _Row:
    """All utterances that one method decoded in one language, split and window."""

    def __init__(self, hypotheses: Sequence[Hypothesis]) -> None:
        first = hypotheses[0]
        self.language, self.split, self.method = first.language, first.split, first.method
        self.adapter, self.window_s = first.adapter, first.window_s
        self.texts = {h.key: h for h in hypotheses}
        self.scored = [scored(h) for h in hypotheses]
        self.summary = error_rates.summarise(self.scored)

    def rate(self, metric: error_rates.Metric) -> float | None:
        return self.summary.wer if metric == "wer" else self.summary.cer


def build_report(run: Path, by: Sequence[str] = ()) -> dict[str, Any]:
    """The tree of `report.json`.

    Args:
        by: fields of the shards' samples, such as age, whose values get rows of their own.

    Raises:
        UserError: a file of the run is missing or damaged, or no clip has a field of `by`.
    """
    return _build(Path(run), read_run(Path(run)), by)


def write_report(run: Path, by: Sequence[str] = ()) -> Path:
    """Write `report.json`, `.html`, `.csv` and `.tex` into `run`; gives the path of the page."""
    run = Path(run)
    files = read_run(run)
    report = _build(run, files, by)
    page = run / "report.html"
    try:
        if report["results"]:
            (run / "report.csv").write_text(tables.csv_text(report["results"]), encoding="utf-8")
            (run / "report.tex").write_text(as_latex(report), encoding="utf-8")
        if report["by"]:
            (run / "report-by.csv").write_text(tables.csv_text(report["by"]), encoding="utf-8")
        (run / "report.json").write_text(
            json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        page.write_text(render(report, files.config_text), encoding="utf-8")
    except OSError as e:
        raise UserError(f"the report can't be written to {run} ({e.strerror})") from None
    return page


def render(report: Mapping[str, Any], config_text: str) -> str:
    """The page of a report: one file that needs no other."""
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=report,
            config_text=config_text,
            best=_best(report["results"]),
            figures={name: Markup(svg) for name, svg in _figures(report).items()},
            align=error_rates.align,
            unit=normalise.unit,
        )
    )


def as_latex(report: Mapping[str, Any]) -> str:
    """The results as one table, the best of each language and split in bold."""
    best = _best(report["results"])
    rows = []
    for row in report["results"]:
        place = row["language"], row["split"]
        line = [f"{row['language']}, {row['adapter'] or row['method']}, {row['window_s']:g} s"]
        for metric in ("wer", "cer"):
            text = tables.latex_percent(row[metric])
            if row[metric] is not None and row[metric] == best[metric][place]:
                text = rf"\textbf{{{text}}}"
            if row[f"{metric}_low"] is not None:
                ends = (tables.latex_percent(row[f"{metric}_{end}"]) for end in ("low", "high"))
                text += f" ({'--'.join(ends)})"
            line.append(text)
        rows.append(line)
    rule = "/".join(sorted({tables.own_rate(row["unit"]) for row in report["results"]}, reverse=True))
    return tables.latex_table(["language, method, window", f"{rule}, %", "CER, %"], rows)


def _build(run: Path, files: RunFiles, by: Sequence[str]) -> dict[str, Any]:
    fields.refuse_unknown(by, files.hypotheses)
    groups: dict[tuple[Any, ...], list[Hypothesis]] = defaultdict(list)
    for h in files.hypotheses:
        if h.method != BARE:
            groups[h.language, h.split, h.method, h.adapter, h.window_s].append(h)
    rows = [_Row(group) for group in groups.values()]
    rows.sort(key=lambda row: _row_order(row, files.config))
    learned = {a.name: a.languages for a in files.config.adapter_settings()}
    gains, pairs, notes = _gains(rows, files.config)
    forgetting = [g for g in gains if g["language"] not in learned[g["adapter"]]]
    gains = [g for g in gains if g["language"] in learned[g["adapter"]]]
    pairs = [
        (before, after) for before, after in pairs if after.language in learned[after.adapter or ""]
    ]
    notes += _data_notes(files)
    if not rows:
        notes.append("not evaluated yet: `salsa-dist evaluate CONFIG` adds error rates and gains")
    elif truncated := sum(row.summary.truncated for row in rows):
        notes.append(
            f"{truncated} hypotheses were cut off at the token limit while still shorter than "
            "their reference: a larger evaluation.max_new_tokens may lower the error rates"
        )
    return {
        "schema": SCHEMA,
        "base": files.start.base.model_dump(),
        "adapters": [
            {
                "name": a.name,
                "language": a.language,
                "rule": a.rule,
                "sites": a.sites,
                "trained_parameters": a.trained_numbers,
                "file": a.file,
                "file_bytes": a.file_bytes,
            }
            for a in files.adapters
        ],
        "results": [_result(row) for row in rows],
        "gains": gains,
        "forgetting": forgetting,
        "untouched": untouched(run, files),
        "by": [line for name in by for line in _by(name, groups, files.config)],
        "examples": [e for before, after in pairs for e in _examples(before, after)],
        "placement": files.placement.model_dump() if files.placement else None,
        "training": _training(run, files),
        "evaluation": files.evaluation.model_dump() if files.evaluation else None,
        "norms": {a.name: vector_facts.norms(a.vectors) for a in files.adapters if a.vectors},
        "cosines": _cosines(files),
        "environment": files.start.environment,
        "definitions": {
            "normaliser": normalise.NORMALISER,
            "interval": f"{error_rates.BOOTSTRAP} bootstrap over speakers where two or more are known, "
            "else over utterances",
            "confidence": error_rates.CONFIDENCE,
            "resamples": error_rates.RESAMPLES,
            "seed": error_rates.SEED,
        },
        "notes": notes,
    }


def _data_notes(files: RunFiles) -> list[str]:
    """What of the training clips was not heard."""
    notes = [
        f"{data.adapter}: {data.left_out} clips longer than the audio window were left out of training"
        for data in files.data
        if data.left_out
    ]
    if files.bad_samples:
        kinds = Counter(bad.kind for bad in files.bad_samples)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        notes.append(
            f"{len(files.bad_samples)} samples could not be used ({listed}); others were heard in "
            "their place, and events.jsonl names them"
        )
    return notes


def _cosines(files: RunFiles) -> dict[str, dict[str, float | None]]:
    """Between each two adapters; nothing where there is but one."""
    own = [a for a in files.adapters if a.vectors]
    if len(own) < 2:
        return {}
    return {a.name: {b.name: vector_facts.cosine(a.vectors, b.vectors) for b in own} for a in own}


def _by(
    name: str, groups: Mapping[tuple[Any, ...], list[Hypothesis]], config: Config
) -> list[dict[str, Any]]:
    """The results of each value of a field, in each language that has it."""
    lines = []
    every: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for (language, *_), own in groups.items():
        every[language].update((h.key, h.fields) for h in own)
    for language, facts in sorted(every.items()):
        if not any(name in f for f in facts.values()):
            continue
        for value, keys in fields.by_value(name, facts):
            parts = [
                _Row(part)
                for (of, *_), own in groups.items()
                if of == language and (part := [h for h in own if h.key in keys])
            ]
            parts.sort(key=lambda row: _row_order(row, config))
            lines += [{"field": name, "value": value, **_result(row)} for row in parts]
    return lines


def _training(run: Path, files: RunFiles) -> dict[str, Any]:
    spent = cost(run)
    seconds = sum(step.seconds for step in files.steps)
    heard = [(s.audio_seconds, s.padding or 0.0) for s in files.steps if s.audio_seconds]
    padded = sum(audio / (1 - padding) for audio, padding in heard)
    loss: dict[str, list[list[float | None]]] = {a.name: [] for a in files.adapters}
    for step in files.steps:
        for name, of in step.adapters.items():
            # A step without a finite loss was skipped; JSON has no NaN.
            finite = of.loss is not None and math.isfinite(of.loss)
            loss.setdefault(name, []).append([step.step, of.loss if finite else None])
    return {
        "steps": len(files.steps),
        "seconds": seconds,
        "device": spent.device if spent else None,
        "device_hours": spent.device_hours if spent else None,
        "clips_per_second": sum(step.clips for step in files.steps) / seconds if seconds else None,
        "starts": files.starts,
        "padding": 1 - sum(audio for audio, _ in heard) / padded if padded else None,
        "left_out": {data.adapter: data.left_out for data in files.data},
        "bad_samples": dict(Counter(bad.kind for bad in files.bad_samples)),
        "loss": loss,
    }


def _result(row: _Row) -> dict[str, Any]:
    return {
        "adapter": row.adapter,
        "language": row.language,
        "method": row.method,
        "window_s": row.window_s,
        "split": row.split,
        "unit": normalise.unit(row.language),
        **asdict(row.summary),
    }


def _row_order(row: _Row, config: Config) -> tuple[Any, ...]:
    """Zero-shot above what is compared with it; adapters as in the config."""
    names = [None, *(adapter.name for adapter in config.adapters)]
    place = names.index(row.adapter) if row.adapter in names else len(names)
    steered = row.method != ZERO_SHOT
    return (row.language, row.split, steered, place, row.adapter or "", row.method, row.window_s)


def _gains(
    rows: Sequence[_Row], config: Config
) -> tuple[list[dict[str, Any]], list[tuple[_Row, _Row]], list[str]]:
    """Gains, the (baseline, steered) rows behind those over words, and why some are not there.

    The baseline is the better zero-shot row over all windows, chosen on the very utterances that it
    is compared on. That favours the baseline, so the gain errs to the low side.
    """
    gains: list[dict[str, Any]] = []
    pairs: list[tuple[_Row, _Row]] = []
    notes: list[str] = []
    groups: dict[tuple[str, str, str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        if row.adapter is not None and row.method != ZERO_SHOT:
            groups[row.adapter, row.language, row.split, row.method].append(row)
    for (adapter, language, split, method), steered_rows in groups.items():
        zero_shot = [
            row for row in rows if (row.method, row.language, row.split) == (ZERO_SHOT, language, split)
        ]
        steered = _at_compared_window(steered_rows, config)
        what = f"{adapter} ({language}, {split}, {method})"
        if not zero_shot:
            notes.append(f"no gain for {what}: it has no zero-shot row to be compared with")
            continue
        if steered is None:
            windows = ", ".join(f"{row.window_s:g} s" for row in steered_rows)
            notes.append(
                f"no gain for {what}: decoded at {windows}, none of which is known to be the "
                "window it is compared at; set base.window_s or add it to evaluation.windows_s"
            )
            continue
        for metric in ("wer", "cer"):
            known = [(rate, row) for row in zero_shot if (rate := row.rate(metric)) is not None]
            if not known:
                continue
            baseline = min(known, key=lambda pair: pair[0])[1]
            try:
                gain = error_rates.relative_gain(baseline.scored, steered.scored, metric)
            except UserError as e:
                raise UserError(f"{what}: {e}") from None
            gains.append(
                {
                    "adapter": adapter,
                    "language": language,
                    "split": split,
                    "method": method,
                    "metric": metric,
                    "window_s": steered.window_s,
                    "baseline_window_s": baseline.window_s,
                    **asdict(gain),
                    **_changes(baseline, steered, metric),
                }
            )
            if metric == "wer":
                pairs.append((baseline, steered))
    return gains, pairs, notes


def _at_compared_window(rows: Sequence[_Row], config: Config) -> _Row | None:
    """The row at the window that adapters are compared at; None if that can't be told.

    With `base.window_s: null` that is the base's own window. Its length is not in the config,
    but it is what remains of the decoded windows without those that the config gives in seconds.
    """
    if config.base.window_s is not None:
        own = [row for row in rows if math.isclose(row.window_s, config.base.window_s)]
    elif len(rows) == 1:
        own = list(rows)
    else:
        given = [w for w in config.evaluation.windows_s if w is not None]
        own = [row for row in rows if not any(math.isclose(row.window_s, w) for w in given)]
    return own[0] if len(own) == 1 else None


def _changes(before: _Row, after: _Row, metric: error_rates.Metric) -> dict[str, int]:
    """How many utterances have fewer errors, as many, or more."""
    steered = {u.key: u.edits(metric).errors for u in after.scored}
    falls = [u.edits(metric).errors - steered[u.key] for u in before.scored if not u.empty_reference]
    return {
        "improved": sum(fall > 0 for fall in falls),
        "unchanged": sum(fall == 0 for fall in falls),
        "worse": sum(fall < 0 for fall in falls),
    }


def _examples(before: _Row, after: _Row) -> list[dict[str, Any]]:
    """Utterances before and after, chosen by rule: see `examples`."""
    steered = {u.key: u.words for u in after.scored}
    errors = {u.key: u.words for u in before.scored}
    return [
        {
            "adapter": after.adapter,
            "language": after.language,
            "split": after.split,
            "method": after.method,
            "key": key,
            "kind": kind,
            "ref_words": errors[key].length,
            "zero_shot_errors": errors[key].errors,
            "steered_errors": steered[key].errors,
            "reference": before.texts[key].reference,
            "zero_shot": before.texts[key].hypothesis,
            "steered": after.texts[key].hypothesis,
        }
        for kind, key in examples.chosen(before.scored, after.scored, EXAMPLES)
    ]


def _best(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, str], float]]:
    """Lowest rate of each language and split, by metric."""
    best: dict[str, dict[tuple[str, str], float]] = {"wer": {}, "cer": {}}
    for metric, lowest in best.items():
        for row in results:
            if row[metric] is not None:
                place = row["language"], row["split"]
                lowest[place] = min(row[metric], lowest.get(place, math.inf))
    return best


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    figures: dict[str, str] = {}
    steered = {(row["language"], row["adapter"]) for row in report["results"] if row["adapter"]}
    rivals = len(steered) > len({language for language, _ in steered})
    splits = {row["split"] for row in report["results"]}
    if any(report["training"]["loss"].values()):
        figures["loss"] = plots.loss_curves(report["training"]["loss"])
    if any(report["norms"].values()):
        figures["norms"] = plots.site_norms(report["norms"])
    if report["cosines"]:
        names = list(report["cosines"])
        table = [[report["cosines"][a][b] for b in names] for a in names]
        figures["cosines"] = plots.cosines(names, table)
    for metric in ("wer", "cer"):
        rows: dict[str, list[plots.Point]] = defaultdict(list)
        for row in report["results"]:
            # Over characters alone, the rate over words says the same thing twice.
            if row[metric] is not None and (metric == "cer" or row["unit"] != "character"):
                place = row["language"] + (f" ({row['split']})" if len(splits) > 1 else "")
                if rivals and row["adapter"]:
                    place += f": {row['adapter']}"
                label = f"{row['method']}, {row['window_s']:g} s"
                rows[place].append(
                    plots.Point(label, row[metric], row[f"{metric}_low"], row[f"{metric}_high"])
                )
        if rows:
            figures[metric] = plots.error_rates(metric.upper(), list(rows.items()))
    return figures
