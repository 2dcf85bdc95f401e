"""The page of a report: one HTML file, no script, nothing fetched. One template for a run and for many.

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
from salsa_dist.report import gain_plots, numbers, plots, tables
from salsa_dist.report.comparison import thinned
from salsa_dist.report.gain_plots import Gain, Trained
from salsa_dist.report.one_run import Report

_KINDS = {
    "salsa": "SALSA",
    "lora": "LoRA",
    "bias": "biases",
    "mean-difference": "mean difference",
    "in-context": "in-context",
}
_PARTS = ("first-third", "middle-third", "last-third", "first-half", "last-half")


def report_page(report: Report) -> str:
    """Of one run: its adapters, what they gain, what they cost."""
    return _page(report.tree, _run_figures(report), {}, report)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Of several runs: methods by languages."""
    return _page(comparison, *_comparison_figures(comparison), None)


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
        languages=sorted({cell["language"] for cell in cells}),
        places=_places(c, sort=report is None),
        splits={cell["split"] for cell in cells},
        rule={cell["language"]: tables.own_rate(cell["unit"]) for cell in cells},
        own_rate=tables.own_rate,
        rows=_rows(c),
        beside=_beside(c),
        tuning=_tuning(c),
        by=_by(c),
        forgetting=_forgetting(c, each=report is not None),
        untouched=_untouched(c),
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
    """A row for each other method: {language: its CER, that of SALSA and p}."""
    made: dict[str, dict[str, Any]] = {}
    for row in comparison["beside"]:
        table = made.setdefault(row["method"], {**row, "languages": {}})
        table["languages"][row["language"]] = row
    return list(made.values())


def _tuning(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each method that had trials: {language: [(what was tried, dev measure, chosen)]}.

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
    """A matrix per method, or of all adapters: what was trained by the language it was decoded in."""
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


def _run_figures(report: Report) -> dict[str, str]:
    """Rates of each language, or adapter where a language has several; what the adapters learned."""
    figures: dict[str, str] = {}
    cells = report.tree["cells"]
    steered = {(cell["language"], cell["method"]) for cell in cells if cell["method"] != ZERO_SHOT}
    rivals = len(steered) > len({language for language, _ in steered})
    splits = {cell["split"] for cell in cells}
    losses: dict[str, Any] = {
        name: thinned(points) for name, points in report.facts["training"]["loss"].items()
    }
    norms, cosines = report.older["norms"], report.older["cosines"]
    if any(losses.values()):
        figures["loss"] = plots.loss_curves(losses)
    if any(norms.values()):
        figures["norms"] = plots.site_norms(norms)
    if cosines:
        names = list(cosines)
        figures["cosines"] = plots.cosines(names, [[cosines[a][b] for b in names] for a in names])
    for metric in ("wer", "cer"):
        rows: dict[str, list[plots.Point]] = defaultdict(list)
        for cell in cells:
            rate = cell[metric]
            # Over characters alone, the rate over words has the same numbers.
            if rate["rate"] is not None and (metric == "cer" or cell["unit"] != "character"):
                place = cell["language"] + (f" ({cell['split']})" if len(splits) > 1 else "")
                if rivals and cell["method"] != ZERO_SHOT:
                    place += f": {cell['method']}"
                label = f"{cell['kind']}, {cell['window_s']:g} s"
                rows[place].append(plots.Point(label, rate["rate"], rate["low"], rate["high"]))
        if rows:
            figures[metric] = plots.error_rates(metric.upper(), list(rows.items()))
    return figures


def _comparison_figures(comparison: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The figures by name, and what their captions say of which methods they show."""
    figures: dict[str, str] = {}
    about: dict[str, str] = {}
    ranked = comparison["mean"]
    best_of_kind = {row["kind"]: row["method"] for row in reversed(ranked)}
    shown = [row["method"] for row in ranked if best_of_kind[row["kind"]] == row["method"]]
    _gain_figures(comparison, figures, about)
    rows: dict[str, list[plots.Point]] = defaultdict(list)
    for cell in comparison["cells"]:
        cer, zero_shot = cell["cer"], cell["method"] == ZERO_SHOT
        if cer["rate"] is not None and (zero_shot or cell["method"] in shown):
            window = f", {cell['window_s']:g} s" if zero_shot else ""
            label = cell["method"] + window
            rows[cell["language"]].append(plots.Point(label, cer["rate"], cer["low"], cer["high"]))
    if rows:
        for points in rows.values():  # zero-shot first, and the others by their mean gain
            points.sort(key=lambda point: shown.index(point.label) if point.label in shown else -1)
        figures["cer"] = plots.error_rates("CER", sorted(rows.items()))
    trained: dict[str, dict[float, list[float]]] = {}
    for row in comparison["losses"]:
        if row["method"] in shown:
            at = trained.setdefault(row["method"], defaultdict(list))
            for step, loss in row["points"]:
                at[step].append(loss)
    if trained:
        curves = {m: [(s, mean(x)) for s, x in sorted(p.items())] for m, p in trained.items()}
        figures["loss"] = plots.loss_curves(curves)
    steered = [row["method"] for row in ranked if row["kind"] in ("salsa", "mean-difference")]
    norms = [row for row in comparison["norms"] if row["method"] == next(iter(steered), None)]
    if norms:
        about["norms"] = norms[0]["method"]
        own_norms = {row["language"]: row["norms"] for row in norms}
        figures["norms"] = plots.site_norms(dict(sorted(own_norms.items())))
    cosines = {row["method"] for row in comparison["cosines"]}
    method = next((m for m in steered if m in cosines), None)
    if method is not None:
        own = [row for row in comparison["cosines"] if row["method"] == method]
        names = sorted({row["language"] for row in own})
        pair = {(row["language"], row["other"]): row["cosine"] for row in own}
        about["cosines"] = method
        figures["cosines"] = plots.cosines(names, [[pair[a, b] for b in names] for a in names])
    return figures, about


def _gain_figures(
    comparison: Mapping[str, Any], figures: dict[str, str], about: dict[str, str]
) -> None:
    cells: dict[str, dict[str, Any]] = defaultdict(dict)
    for cell in comparison["cells"]:
        if cell["cer"]["gain"] is not None:
            cells[cell["method"]][cell["language"]] = cell["cer"]
    elsewhere = {row["method"] for row in comparison["sites"] if row["layer"] is not None}
    elsewhere |= {row["sized"] for row in comparison["minutes"] if row["sized"] != row["method"]}
    rows = [
        (row["method"], {language: _gain(c) for language, c in sorted(cells[row["method"]].items())})
        for row in comparison["mean"]
        if row["method"] in cells and row["method"] not in elsewhere
    ]
    if rows:
        figures["gains"] = gain_plots.gains("gains", rows)
    smaller = {row["sized"] for row in comparison["minutes"] if row["sized"] != row["method"]}
    numbers: dict[str, list[Trained]] = defaultdict(list)
    for row in comparison["mean"]:
        found = {language: c["gain"] for language, c in cells[row["method"]].items()}
        if found and row["trained_numbers"] and row["method"] not in smaller:
            point = Trained(row["method"], row["trained_numbers"], found)
            numbers[_KINDS[row["kind"]]].append(point)
    if numbers:
        figures["numbers"] = gain_plots.gain_by_numbers(numbers)
    known = [row for row in comparison["sites"] if row["gain"] is not None]
    rules = [row["rule"] for row in known]
    if rules:
        # Of two rules, the one that was tried at more sites.
        rule = max(dict.fromkeys(rules), key=rules.count)
        own = [row for row in known if row["rule"] == rule]
        layers: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        sites: dict[str, dict[str, Gain]] = defaultdict(dict)
        for row in own:
            sites[row["sites"]][row["language"]] = _gain(row)
            if row["layer"] is not None:
                layers[row["component"]][row["language"]].append((row["layer"], row["gain"]))
        for component, curves_of in layers.items():
            if any(len(points) > 1 for points in curves_of.values()):
                curve = gain_plots.layer_curve(component, dict(sorted(curves_of.items())))
                figures[f"{component}_layers"] = curve
        if len(sites) > 1:
            ordered = sorted(sites.items(), key=lambda item: _site_place(item[0]))
            figures["sites"] = gain_plots.gains("sites", ordered)
        about["sites"] = f"rule {rule}"
    families = [row["method"] for row in comparison["minutes"] if row["gain"] is not None]
    if families:
        family = max(dict.fromkeys(families), key=families.count)
        curves: dict[str, list[tuple[float, Gain]]] = defaultdict(list)
        for row in comparison["minutes"]:
            if row["method"] == family and row["gain"] is not None:
                curves[row["language"]].append((row["minutes"], _gain(row)))
        about["minutes"] = family
        figures["minutes"] = gain_plots.gain_by_minutes(dict(sorted(curves.items())))


def _gain(row: Mapping[str, Any]) -> Gain:
    return Gain(row["gain"], row["gain_low"], row["gain_high"])


def _site_place(sites: str) -> tuple[int, int, str]:
    """Sort key of choices in words: layers alone, parts of the encoder, all of it, LLM, both."""
    component, _, rest = sites.partition(":")
    if "+" in sites:
        return 4, 0, sites
    if rest.isdigit():
        return (0 if component == "encoder" else 3), int(rest), sites
    if component == "encoder":
        return (1 if rest else 2), _PARTS.index(rest) if rest in _PARTS else len(_PARTS), sites
    return 3, 1_000, sites
