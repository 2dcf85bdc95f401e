"""The figures of a page, and their content.

Report (of one run)    ──run_figures───────> {name: SVG}
comparison.json's tree ──comparison_figures> {name: SVG}, {name: what its caption says of methods}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from salsa_dist.evaluation.transcripts import ZERO_SHOT
from salsa_dist.methods.registry import METHODS, steers
from salsa_dist.report import gain_plots, plots, scales, tables
from salsa_dist.report.comparison import thinned
from salsa_dist.report.gain_plots import Gain, Trained
from salsa_dist.report.one_run import Report

_PARTS = ("first-third", "middle-third", "last-third", "first-half", "last-half")


def run_figures(report: Report) -> dict[str, str]:
    """Rates per language (or adapter, if a language has several); norms and cosines."""
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
        figures["loss"] = plots.loss_curves(losses, report.facts["training"]["dev_loss"])
    for rate, curves in report.facts["training"]["dev_rates"].items():
        figures[f"dev_{rate}"] = plots.dev_rates(rate.upper(), curves)
    if any(norms.values()):
        figures["norms"] = plots.site_norms(norms)
    _scale_figure(report.tree, figures)
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
            own = {tables.own_rate(cell["unit"]) for cell in cells} - {"CER"}
            name = "CER" if metric == "cer" else "/".join(sorted(own, reverse=True))
            figures[metric] = plots.error_rates(name, list(rows.items()))
    return figures


def comparison_figures(comparison: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The figures by name, with captions that say which methods they show."""
    figures: dict[str, str] = {}
    about: dict[str, str] = {}
    ranked = comparison["mean"]
    shown = _best_of_kind(ranked)
    averaged = {cell["method"] for cell in comparison["cells"] if cell["averaged"]}
    learned = [row for row in ranked if row["method"] not in averaged]  # in one training for each seed
    _gain_figures(comparison, figures, about)
    _scale_figure(comparison, figures)
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
    with_losses = _best_of_kind(learned)
    trained: dict[str, dict[float, list[float]]] = {}
    for row in comparison["losses"]:
        if row["method"] in with_losses:
            at = trained.setdefault(row["method"], defaultdict(list))
            for step, loss in row["points"]:
                at[step].append(loss)
    if trained:
        curves = {m: [(s, mean(x)) for s, x in sorted(p.items())] for m, p in trained.items()}
        figures["loss"] = plots.loss_curves(curves)
    steered = [row["method"] for row in learned if steers(row["kind"])]
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


def _best_of_kind(ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first method of each kind, in their order."""
    best = {row["kind"]: row["method"] for row in reversed(ranked)}
    return [row["method"] for row in ranked if best[row["kind"]] == row["method"]]


def _scale_figure(tree: Mapping[str, Any], figures: dict[str, str]) -> None:
    if curves := scales.curves_of(tree["scales"]):
        figures["scales"] = plots.rates_by_scale(curves)


def _gain_figures(
    comparison: Mapping[str, Any], figures: dict[str, str], about: dict[str, str]
) -> None:
    cells: dict[str, dict[str, Any]] = defaultdict(dict)
    for cell in comparison["cells"]:
        if cell["cer"]["gain"] is not None:
            cells[cell["method"]][cell["language"]] = cell["cer"]
    elsewhere = {row["method"] for row in comparison["sites"] if row["layer"] is not None}
    smaller = _smaller(comparison)
    elsewhere |= smaller
    rows = [
        (row["method"], {language: _gain(c) for language, c in sorted(cells[row["method"]].items())})
        for row in comparison["mean"]
        if row["method"] in cells and row["method"] not in elsewhere
    ]
    if rows:
        figures["gains"] = gain_plots.gains("gains", rows)
    numbers: dict[str, list[Trained]] = defaultdict(list)
    for row in comparison["mean"]:
        found = {language: c["gain"] for language, c in cells[row["method"]].items()}
        if found and row["trained_numbers"] and row["method"] not in smaller:
            point = Trained(row["method"], row["trained_numbers"], found)
            numbers[METHODS[row["kind"]].title].append(point)
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
    by_steps: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in comparison["steps"]:
        if row["gain"] is not None:
            by_steps[row["method"]][row["steps"]][row["language"]] = row["gain"]
    if by_steps:
        figures["steps"] = gain_plots.gain_by_steps(by_steps)


def _smaller(comparison: Mapping[str, Any]) -> set[str]:
    """Methods that are another with less speech or fewer steps: figures of curves show them."""
    cells = comparison["cells"]
    whole = {cell["method"] for cell in cells if not cell["smaller"]}
    return {cell["method"] for cell in cells} - whole


def _gain(row: Mapping[str, Any]) -> Gain:
    return Gain(row["gain"], row["gain_low"], row["gain_high"])


def _site_place(sites: str) -> tuple[int, int, str]:
    """Sort key of sites: single layers, parts of the encoder, the whole encoder, the LLM, both."""
    component, _, rest = sites.partition(":")
    if "+" in sites:
        return 4, 0, sites
    if rest.isdigit():
        return (0 if component == "encoder" else 3), int(rest), sites
    if component == "encoder":
        return (1 if rest else 2), _PARTS.index(rest) if rest in _PARTS else len(_PARTS), sites
    return 3, 1_000, sites
