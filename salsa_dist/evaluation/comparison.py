"""Several runs over one base, side by side: languages x methods, seeds averaged, tests between them.

    RUN, RUN, … ──read_run──> entries ──> comparison ──> comparison.json, .csv, .tex, .html

    entry        one method in one language: the hypotheses of each of its seeds
    comparison
    ├── cells    one an entry: mean rate over seeds, its deviation, interval, gain over zero-shot
    ├── tests    paired permutation tests of each method against the best, Holm-corrected a language
    ├── mean     gain of each method over the languages that it was run on
    └── layers   gain against the encoder layer steered alone; what was steered together beside it

A method's name holds what was chosen of it (rule, sites, rank), not its learning rate: of several rates
one must have been chosen on dev before; two of the same seed are an error. The interval of several
seeds is a bootstrap over utterances of their mean errors, so it tells of utterances, and the deviation
of seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy import stats

from salsa_dist.config import BiasMethod, Config, InContextMethod, LoraMethod, MeanDifferenceMethod
from salsa_dist.errors import UserError
from salsa_dist.evaluation import metrics, normalise
from salsa_dist.evaluation.run_files import Hypothesis, RunFiles, read_run

SCHEMA = "salsa-dist/comparison/1"
ZERO_SHOT = "zero-shot"
METRICS: tuple[metrics.Metric, ...] = ("cer", "wer")


@dataclass(frozen=True)
class Entry:
    """One method in one language and window.

    Attributes:
        seeds: seed -> scored utterances by key.
        trained: numbers that were trained, 0 for none.
        single_layer: the encoder layer, if one alone is steered.
    """

    language: str
    method: str
    window_s: float
    trained: int
    single_layer: int | None = None
    seeds: dict[int, dict[str, metrics.Scored]] = field(default_factory=dict)

    def rates(self, metric: metrics.Metric) -> list[float]:
        """Of each seed."""
        made = [metrics.summarise(list(scored.values())) for scored in self.seeds.values()]
        found = [s.wer if metric == "wer" else s.cer for s in made]
        return [rate for rate in found if rate is not None]


def compare(
    runs: Sequence[Path], names: Mapping[tuple[Path, str], str] | None = None
) -> dict[str, Any]:
    """The tree of `comparison.json`.

    Args:
        runs: folders of runs.
        names: by run and adapter, what it is compared as, others being left out; None: all adapters,
            by what was chosen of their method.

    Raises:
        UserError: a run is missing or damaged, or they are of different bases, splits or clips.
    """
    files = [read_run(Path(run)) for run in runs]
    _refuse_apples_and_pears(runs, files)
    entries = _entries(runs, files, names)
    cells = [_cell(entry, entries) for entry in entries]
    return {
        "schema": SCHEMA,
        "base": files[0].start.base.model_dump(),
        "runs": [str(run) for run in runs],
        "split": files[0].config.evaluation.split,
        "cells": cells,
        "mean": _mean_gains(cells),
        "tests": [
            test
            for language in _languages(entries)
            for metric in METRICS
            for test in _tests(entries, language, metric)
        ],
        "layers": _layers(entries, cells),
        "cost": [_cost(run, file) for run, file in zip(runs, files, strict=True)],
        "definitions": {
            "normaliser": normalise.NORMALISER,
            "interval": f"{metrics.BOOTSTRAP} bootstrap over utterances of the mean over seeds",
            "confidence": metrics.CONFIDENCE,
            "resamples": metrics.RESAMPLES,
            "test": "paired permutation of utterances' errors, two-sided, Holm-corrected",
        },
    }


def method_name(config: Config, row: int) -> str:
    """What adapter `row` of a run is compared as."""
    adapter = config.adapter_settings()[row]
    method = config.method
    if isinstance(method, LoraMethod):
        return f"LoRA r={method.rank} on {', '.join(method.targets)} of {adapter.sites}"
    if isinstance(method, BiasMethod):
        return f"biases of {adapter.sites}"
    if isinstance(method, MeanDifferenceMethod):
        return f"mean difference to {method.contrast}, {adapter.sites}"
    if isinstance(method, InContextMethod):
        return f"in-context, {method.examples} examples by {method.choose}"
    return f"SALSA ({adapter.rule}), {adapter.sites}"


def _entries(
    runs: Sequence[Path],
    files: Sequence[RunFiles],
    names: Mapping[tuple[Path, str], str] | None,
) -> list[Entry]:
    entries: dict[tuple[str, str, float], Entry] = {}
    for run, file in zip(runs, files, strict=True):
        config = file.config
        settings = config.adapter_settings()
        rows = {a.name: i for i, a in enumerate(settings)}
        trained = {a.name: a.trained_numbers for a in file.adapters}
        groups: dict[tuple[str, str | None, float], list[Hypothesis]] = defaultdict(list)
        for h in file.hypotheses:
            groups[h.language, h.adapter, h.window_s].append(h)
        for (language, adapter, window), hypotheses in groups.items():
            if adapter is not None and not _trained_at(config, window, groups):
                continue
            if adapter is not None and names is not None and (run, adapter) not in names:
                continue
            if adapter is None:
                name, seed, count, layer = ZERO_SHOT, 0, 0, None
            else:
                row = rows[adapter]
                name = names[run, adapter] if names else method_name(config, row)
                seed = settings[row].seed
                learned = config.method.kind != "mean-difference"
                count = trained.get(adapter, 0) if learned else 0
                layer = _single_layer(settings[row].sites)
            entry = entries.setdefault(
                (language, name, window), Entry(language, name, window, count, layer)
            )
            scored = {
                h.key: metrics.score(
                    h.reference, h.hypothesis, language, finished=h.finished, key=h.key
                )
                for h in hypotheses
            }
            before = entry.seeds.get(seed)
            if before is not None and adapter is not None:
                raise UserError(
                    f"{run}: {name} in {language} with seed {seed} is there twice: choose the "
                    "learning rate on dev, and compare that run alone"
                )
            entry.seeds[seed] = scored
    return [_checked(entry) for entry in entries.values()]


def _trained_at(config: Config, window: float, groups: Mapping[Any, Any]) -> bool:
    """Whether adapters are compared at this window: the one that they were trained at."""
    if config.base.window_s is not None:
        return math.isclose(window, config.base.window_s)
    given = [w for w in config.evaluation.windows_s if w is not None]
    windows = {w for _, _, w in groups}
    return len(windows) == 1 or not any(math.isclose(window, w) for w in given)


def _single_layer(sites: str) -> int | None:
    component, _, rest = sites.partition(":")
    return int(rest) if component == "encoder" and rest.isdigit() else None


def _checked(entry: Entry) -> Entry:
    keys = [set(scored) for scored in entry.seeds.values()]
    if any(k != keys[0] for k in keys):
        raise UserError(
            f"{entry.method} in {entry.language}: its seeds were decoded on different clips; evaluate "
            "them again on the same shards"
        )
    return entry


def _cell(entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "language": entry.language,
        "method": entry.method,
        "window_s": entry.window_s,
        "trained_numbers": entry.trained,
        "seeds": sorted(entry.seeds),
        "unit": normalise.unit(entry.language),
        "utterances": len(next(iter(entry.seeds.values()))),
        "runaways": sum(u.runaway for s in entry.seeds.values() for u in s.values()),
        "empty": sum(u.empty_hypothesis for s in entry.seeds.values() for u in s.values()),
    }
    for metric in METRICS:
        rates = entry.rates(metric)
        low, high = _interval(entry, metric)
        baseline = _baseline(entries, entry.language, metric)
        gain: list[float | None] = [None, None, None]
        if baseline is not None and entry.method != ZERO_SHOT and rates:
            gain = _gain(baseline, entry, metric)
        cell[metric] = {
            "rate": mean(rates) if rates else None,
            "deviation": stdev(rates) if len(rates) > 1 else None,
            "low": low,
            "high": high,
            "gain": gain[0],
            "gain_low": gain[1],
            "gain_high": gain[2],
            "baseline_window_s": baseline.window_s if baseline else None,
        }
    return cell


def _baseline(entries: Sequence[Entry], language: str, metric: metrics.Metric) -> Entry | None:
    """The better zero-shot of all windows, chosen on the very clips: that favours the baseline."""
    known = [e for e in entries if e.language == language and e.method == ZERO_SHOT and e.rates(metric)]
    return min(known, key=lambda e: e.rates(metric)[0], default=None)


def _mean_errors(entry: Entry, metric: metrics.Metric) -> dict[str, tuple[float, int]]:
    """key -> errors, averaged over seeds, and reference length, of the clips that have a reference."""
    first = next(iter(entry.seeds.values()))
    return {
        key: (
            mean(scored[key].edits(metric).errors for scored in entry.seeds.values()),
            utterance.edits(metric).length,
        )
        for key, utterance in sorted(first.items())
        if not utterance.empty_reference
    }


def _interval(entry: Entry, metric: metrics.Metric) -> metrics.Interval:
    values = list(_mean_errors(entry, metric).values())
    return metrics.bootstrap(
        np.array([errors for errors, _ in values], dtype=np.float64),
        np.array([length for _, length in values], dtype=np.float64),
        metrics.ratio,
    )


def _gain(baseline: Entry, entry: Entry, metric: metrics.Metric) -> list[float | None]:
    before, after = _mean_errors(baseline, metric), _mean_errors(entry, metric)
    _same_clips(baseline, entry, before, after)
    b = np.array([before[k][0] for k in before], dtype=np.float64)
    a = np.array([after[k][0] for k in before], dtype=np.float64)
    if not b.sum():
        return [None, None, None]
    return [float(metrics.fall(b, a)), *metrics.bootstrap(b, a, metrics.fall)]


def _same_clips(one: Entry, other: Entry, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if {k: v[1] for k, v in a.items()} != {k: v[1] for k, v in b.items()}:
        raise UserError(
            f"{one.language}: {one.method} and {other.method} were decoded on different clips or "
            "references; evaluate both on the same shards and split"
        )


def _tests(entries: Sequence[Entry], language: str, metric: metrics.Metric) -> list[dict[str, Any]]:
    """Each method of a language against its best."""
    own = [e for e in entries if e.language == language and e.rates(metric)]
    if len(own) < 2:
        return []
    best = min(own, key=lambda e: mean(e.rates(metric)))
    others = [e for e in own if e is not best]
    errors = {id(e): _mean_errors(e, metric) for e in own}
    raw = []
    for other in others:
        _same_clips(best, other, errors[id(best)], errors[id(other)])
        apart = np.array(
            [errors[id(other)][k][0] - errors[id(best)][k][0] for k in errors[id(best)]],
            dtype=np.float64,
        )
        raw.append(_permutation(apart))
    adjusted = _holm(raw)
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
        for other, p in zip(others, adjusted, strict=True)
    ]


def _permutation(apart: np.ndarray) -> float:
    """p of no difference, for (utterances,) paired differences: their signs are drawn anew."""
    if not apart.any():
        return 1.0
    found = stats.permutation_test(
        (apart,),
        lambda x, axis=-1: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=metrics.RESAMPLES,
        rng=np.random.default_rng(metrics.SEED),
    )
    return float(found.pvalue)


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, most = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = most
    return adjusted


def _mean_gains(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell["method"] != ZERO_SHOT:
            groups[cell["method"], cell["window_s"]].append(cell)
    made = []
    for (method, window), own in groups.items():
        row: dict[str, Any] = {
            "method": method,
            "window_s": window,
            "languages": sorted(c["language"] for c in own),
            "trained_numbers": max(c["trained_numbers"] for c in own),
        }
        for metric in METRICS:
            gains = [c[metric]["gain"] for c in own if c[metric]["gain"] is not None]
            row[metric] = mean(gains) if gains else None
        made.append(row)
    return sorted(made, key=lambda row: -(row["cer"] if row["cer"] is not None else -math.inf))


def _layers(entries: Sequence[Entry], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gain in CER of each encoder layer steered alone."""
    return [
        {"language": e.language, "method": e.method, "layer": e.single_layer, "gain": c["cer"]["gain"]}
        for e, c in zip(entries, cells, strict=True)
        if e.single_layer is not None
    ]


def _cost(run: Path, file: RunFiles) -> dict[str, Any]:
    return {
        "run": str(run),
        "method": file.config.method.kind,
        "adapters": len(file.config.adapters),
        "steps": len(file.steps),
        "training_seconds": sum(step.seconds for step in file.steps),
        "evaluation_seconds": file.evaluation.seconds if file.evaluation else None,
    }


def _languages(entries: Sequence[Entry]) -> list[str]:
    return sorted({e.language for e in entries})


def _refuse_apples_and_pears(runs: Sequence[Path], files: Sequence[RunFiles]) -> None:
    problems = []
    for run, file in zip(runs, files, strict=True):
        if not file.hypotheses:
            problems.append(f"{run} was not evaluated: salsa-dist evaluate {run}/config.yaml")
        if file.start.base.revision != files[0].start.base.revision:
            problems.append(f"{run} is of base revision {file.start.base.revision}")
        if file.config.evaluation.split != files[0].config.evaluation.split:
            problems.append(f"{run} was evaluated on {file.config.evaluation.split}")
    if problems:
        first = files[0]
        raise UserError(
            f"these runs can't be compared with {runs[0]} (revision {first.start.base.revision}, split "
            f"{first.config.evaluation.split}): " + "; ".join(problems)
        )
