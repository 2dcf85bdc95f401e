"""Error rates of adapters by the scale of their vectors, in each language that they were decoded in.

RunFiles.scaled, .hypotheses ──rows_of──> [{adapter, trained_in, language, scale, cer, wer, …}]
                                           ├── curves_of  {"bg in bg": [(scale, cer), …]}
                                           └── table_of   a row per adapter and language

Scale 1 is the adapter itself, and 0 the base as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from salsa_dist.evaluation.transcripts import BARE, ZERO_SHOT
from salsa_dist.metrics.error_rates import METRICS, Scored, corpus_rate
from salsa_dist.metrics.normalise import Rules
from salsa_dist.report.cases import scored
from salsa_dist.report.run_files import RunFiles

Row = Mapping[str, Any]


def rows_of(run: Path, file: RunFiles) -> list[dict[str, Any]]:
    """A row per adapter, language, window and scale; none where only scale 1 was decoded."""
    rules = Rules.of(file.config.evaluation)
    learned = {a.name: a.languages for a in file.config.adapter_settings()}
    places = {(h.adapter, h.language, h.window_s) for h in file.scaled}
    found: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    base: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    for h in (*file.hypotheses, *file.scaled):
        if h.split != file.config.evaluation.split or h.method == BARE:
            continue
        if h.method == ZERO_SHOT:
            base[h.language, h.window_s].append(scored(h, rules))
        elif (h.adapter, h.language, h.window_s) in places:
            found[h.adapter, h.language, h.window_s, h.scale].append(scored(h, rules))
    for place in places:
        if base.get(place[1:]):
            found.setdefault((*place, 0.0), base[place[1:]])
    return [
        {
            "run": str(run),
            "adapter": adapter,
            "trained_in": "+".join(learned.get(adapter, ())),
            "language": language,
            "window_s": window,
            "scale": scale,
            "utterances": len(own),
            **{metric: corpus_rate(own, metric) for metric in METRICS},
        }
        for (adapter, language, window, scale), own in sorted(found.items())
    ]


def curves_of(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """(scale, CER) of each adapter in the languages that it was trained in, and in others: means over
    languages, windows and runs."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        own = row["language"] in row["trained_in"].split("+")
        name = row["adapter"] if own else f"{row['adapter']} in other languages"
        if row["cer"] is not None:
            found[name][row["scale"]].append(row["cer"])
    return {
        name: [(scale, mean(rates)) for scale, rates in sorted(by_scale.items())]
        for name, by_scale in found.items()
    }


def table_of(rows: Sequence[Row]) -> tuple[list[float], dict[tuple[str, ...], dict[float, Row]]]:
    """The scales, and by the run's name, adapter, language and window the rows by scale."""
    table: dict[tuple[str, ...], dict[float, Row]] = {}
    for row in rows:
        place = Path(row["run"]).name, row["adapter"], row["language"], row["window_s"]
        table.setdefault(place, {})[row["scale"]] = row
    return sorted({row["scale"] for row in rows}), table
