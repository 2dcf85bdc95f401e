"""The page of a report: one HTML file without scripts or links. One template for all reports.

report.json's tree     ──report_page──────> text
comparison.json's tree ──comparison_page──> text
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import partial
from statistics import mean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from salsa_dist.evaluation.transcripts import ZERO_SHOT
from salsa_dist.metrics import error_rates, normalise
from salsa_dist.report import numbers, scales, tables
from salsa_dist.report.figures import comparison_figures, run_figures
from salsa_dist.report.one_run import Report


def report_page(report: Report) -> str:
    """The page of one run: its adapters, their gains, their cost."""
    return _page(report.tree, run_figures(report), {}, report)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The page of several runs: methods by languages."""
    return _page(comparison, *comparison_figures(comparison), None)


def _page(
    c: Mapping[str, Any], figures: Mapping[str, str], about: Mapping[str, str], report: Report | None
) -> str:
    cells = c["cells"]
    environment = Environment(
        loader=PackageLoader("salsa_dist.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= numbers.FILTERS
    return environment.get_template("page.html").render(
        c=c,
        run=report.facts if report else None,
        config_text=report.config_text if report else "",
        best=tables.best_rates(cells),
        best_means=_best_means(c),
        languages=sorted({cell["language"] for cell in cells}),
        places=_places(c, sort=report is None),
        splits={cell["split"] for cell in cells},
        rule={cell["language"]: tables.own_rate(cell["unit"]) for cell in cells},
        own_rate=tables.own_rate,
        rows=_rows(c),
        beside=_beside(c),
        tuning=_tuning(c),
        untried=_untried(c),
        by=_by(c),
        forgetting=_forgetting(c, each=report is not None),
        untouched=_untouched(c),
        scales=scales.table_of(c["scales"]),
        cost=_cost(c),
        windows=sorted({cell["window_s"] for cell in cells}),
        tests={
            (t["language"], t["split"], t["method"], t["window_s"]): t["p"]
            for t in c["tests"]
            if t["metric"] == "cer"
        },
        winners={
            (t["language"], t["split"], t["best"], t["best_window_s"])
            for t in c["tests"]
            if t["metric"] == "cer"
        },
        figures={name: Markup(svg) for name, svg in figures.items()},
        about=defaultdict(str, about),
        align=partial(error_rates.align, rules=normalise.Rules(**c.get("scoring", {}))),
        unit=normalise.unit,
    )


def _places(c: Mapping[str, Any], *, sort: bool) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Cells by language and split; if asked for, zero-shot first and methods by their mean gain."""
    ranks = {(row["method"], row["window_s"]): i for i, row in enumerate(c["mean"])}
    places: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in sorted(c["cells"], key=lambda x: (x["language"], x["split"])):
        places[cell["language"], cell["split"]].append(cell)
    for own in places.values() if sort else ():
        own.sort(key=lambda x: ranks.get((x["method"], x["window_s"]), -1))
    return dict(places)


def _rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table's rows: zero-shot first, then methods by their mean gain, each {language: cell}."""
    own: dict[tuple[str, float], dict[str, Any]] = defaultdict(dict)
    for cell in comparison["cells"]:
        own[cell["method"], cell["window_s"]][cell["language"]] = cell
    means = {(row["method"], row["window_s"]): row for row in comparison["mean"]}
    order = [key for key in own if key not in means] + list(means)
    return [
        {"method": key[0], "window_s": key[1], "cells": own[key], "mean": means.get(key)}
        for key in order
    ]


def _beside(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per other method: {language: its error rates, SALSA's, and p of either}."""
    made: dict[str, dict[str, Any]] = {}
    for row in comparison["beside"]:
        table = made.setdefault(row["method"], {**row, "languages": {}})
        table["languages"][row["language"]] = row
    return list(made.values())


def _tuning(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per method with trials: {language: [(setting, dev measure, chosen)]}.

    A choice by several languages at once has their mean too.
    """
    made: dict[str, dict[str, Any]] = {}
    for choice in (comparison["tuning"] or {"choices": []})["choices"]:
        if len(choice["tries"]) < 2:
            continue
        size = "" if choice["minutes"] is None else f", {choice['minutes']:g} min"
        row = made.setdefault(choice["method"] + size, {"tries": len(choice["tries"]), "languages": {}})
        for tried in choice["tries"]:
            measures = dict(tried["dev"])
            if len(measures) > 1:
                measures["mean"] = _mean(measures.values())
            for language, measure in measures.items():
                told = tried["tried"], measure, tried["tried"] == choice["chosen"]
                row["languages"].setdefault(language, []).append(told)
    return [{"method": method, **row} for method, row in made.items()]


def _untried(comparison: Mapping[str, Any]) -> list[str]:
    """Methods with one setting, and so no trials; zero-shot has none to try."""
    choices = (comparison["tuning"] or {"choices": []})["choices"]
    named = [x["method"] for x in choices if len(x["tries"]) < 2 and x["method"] != ZERO_SHOT]
    return list(dict.fromkeys(named))


def _best_means(comparison: Mapping[str, Any]) -> set[tuple[str, float]]:
    """The methods, at their windows, of the highest mean gain in CER over all languages."""
    languages = {cell["language"] for cell in comparison["cells"]}
    whole = [row for row in comparison["mean"] if len(row["languages"]) == len(languages)]
    best = max((row["cer"] for row in whole if row["cer"] is not None), default=None)
    known = [row for row in whole if row["cer"] is not None and row["cer"] == best]
    return {(row["method"], row["window_s"]) for row in known}


def _mean(values: Collection[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _untouched(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs with the same numbers for a language in one row, with how many they are."""
    made: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in comparison["untouched"]:
        said = {key: value for key, value in row.items() if key != "run"}
        made.setdefault(tuple(said.values()), {**said, "runs": 0})["runs"] += 1
    return sorted(made.values(), key=lambda row: (row["language"], row["window_s"]))


def _cost(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sums over the runs of one kind of method, trials apart, and over all."""
    hours = ("training_device_hours", "evaluation_device_hours")
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for row in comparison["cost"]:
        for key in ((row["stage"], row["method"]), ("", "all")):
            start = {"stage": key[0], "kind": key[1], "runs": 0, "adapters": 0, "device": row["device"]}
            own = made.setdefault(key, {**start, **dict.fromkeys(hours, 0.0)})
            own["runs"] += 1
            own["adapters"] += row["adapters"]
            for what in hours:
                own[what] += row[what] or 0.0
    return sorted(made.values(), key=lambda row: (row["kind"] == "all", row["kind"], row["stage"]))


def _by(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table for each field and language: methods by values, with the lowest rate of each value."""
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for row in comparison["by"]:
        table = made.setdefault(
            (row["field"], row["language"]),
            {"field": row["field"], "language": row["language"], "unit": row["unit"]}
            | {"values": {}, "methods": {}},
        )
        value = table["values"].setdefault(
            row["value"], {"utterances": row["utterances"], "best": None}
        )
        rate = row["wer"]["rate"]
        if rate is not None:
            value["best"] = rate if value["best"] is None else min(value["best"], rate)
        table["methods"].setdefault((row["method"], row["window_s"]), {})[row["value"]] = row
    return list(made.values())


def _forgetting(comparison: Mapping[str, Any], *, each: bool) -> list[dict[str, Any]]:
    """A matrix per method, or of all adapters: adapters by decoded language."""
    made: dict[tuple[str, float], dict[str, Any]] = {}
    for row in comparison["forgetting"]:
        key = "" if each else row["method"], row["window_s"]
        name = row["method"] if each else row["trained_in"]
        table = made.setdefault(
            key, {"method": key[0], "window_s": key[1], "rows": {}, "columns": set()}
        )
        table["rows"].setdefault(name, {})[row["language"]] = row
        table["columns"].add(row["language"])
    own = made.values()
    return [
        {**t, "rows": dict(sorted(t["rows"].items())), "columns": sorted(t["columns"])} for t in own
    ]
