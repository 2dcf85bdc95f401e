"""The report's figures, as SVG text to be put inline into its page.

    loss_curves    {adapter: [(step, loss), …]}       one line an adapter, faint, and its running mean
    site_norms     {adapter: {site: norm}}            one line an adapter, broken between modules
    error_rates    [(language, [Point, …]), …]        dots with intervals, one row a language
    gain_by_numbers  {method: [(numbers, gain), …]}     dots, numbers on a log scale
    layer_curve      {language: [(layer, gain), …]}     one line a language

Colours are CSS variables (`--ink`, `--series-0` …) and text stays text, so that the page decides on
light or dark and on the font, and scripts that matplotlib's font lacks still show.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from scipy.ndimage import uniform_filter1d

SERIES = 6
"""Lines with colours of their own; with more adapters all are faint and their median is drawn."""

# Stand-ins that no palette uses, swapped for CSS variables in the finished SVG.
_INK = "#010203"
_COLOURS = [f"#0a0b{10 + i:02x}" for i in range(SERIES)]
_INKED = ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"]
_MARKERS = "osD^vP"
_LONG_LABEL = 22  # letters; two columns of longer ones would be cut off
_WIDTH = 4.1  # inches: shown at about this size on a phone too, so that its text stays legible


@dataclass(frozen=True)
class Point:
    """One method's rate, as a fraction, with its interval where there is one."""

    label: str
    rate: float
    low: float | None
    high: float | None


def site_order(site: str) -> tuple[str, int, str]:
    """Sort key: `encoder.2` before `encoder.10`, `encoder` before `llm`."""
    module, _, number = site.rpartition(".")
    return (module, int(number), "") if number.isdigit() else (site, -1, site)


def loss_curves(losses: Mapping[str, Sequence[tuple[int, float | None]]]) -> str:
    """Loss of each adapter over its steps. A step without a loss leaves a gap."""

    def draw(axes: Axes) -> None:
        smooth: list[np.ndarray] = []
        few = len(losses) <= SERIES
        for i, (name, points) in enumerate(losses.items()):
            steps = np.array([s for s, loss in points if loss is not None])
            values = np.array([loss for _, loss in points if loss is not None], dtype=np.float64)
            if not len(steps):
                continue
            mean = uniform_filter1d(values, size=max(3, len(values) // 12), mode="nearest")
            colour = _COLOURS[i] if few else _INK
            if few:
                axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8)
                axes.plot(steps, mean, color=colour, linewidth=2, label=_literal(name))
            else:
                axes.plot(steps, mean, color=colour, linewidth=0.7, alpha=0.35)
                smooth.append(np.stack([steps, mean]))
        if smooth:
            steps = np.unique(np.concatenate([s[0] for s in smooth]))
            table = [np.interp(steps, s[0], s[1], left=np.nan, right=np.nan) for s in smooth]
            axes.plot(steps, np.nanmedian(table, axis=0), color=_COLOURS[0], linewidth=2.5,
                      label=f"median of {len(smooth)}")  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)")

    return _svg("loss", 3.0, draw)


def site_norms(norms: Mapping[str, Mapping[str, float]]) -> str:
    """Length of each site's steering vector."""
    sites = sorted({site for of in norms.values() for site in of}, key=site_order)
    place = {site: i for i, site in enumerate(sites)}

    def draw(axes: Axes) -> None:
        few = len(norms) <= SERIES
        for i, (name, of) in enumerate(norms.items()):
            colour = _COLOURS[i] if few else _INK
            own = sorted(of, key=site_order)
            for j, (_, group) in enumerate(groupby(own, key=lambda s: site_order(s)[0])):
                part = list(group)
                axes.plot([place[s] for s in part], [of[s] for s in part], color=colour,
                          marker=_MARKERS[i] if few else None, markersize=5,
                          linewidth=1.5 if few else 0.7, alpha=1 if few else 0.35,
                          label=_literal(name) if few and j == 0 else None)  # fmt: skip
        if not few:
            median = [np.median([of[s] for of in norms.values() if s in of]) for s in sites]
            axes.plot(range(len(sites)), median, color=_COLOURS[0], linestyle="", marker="o",
                      markersize=5, label=f"median of {len(norms)}")  # fmt: skip
        every = max(1, -(-len(sites) // 12))
        axes.set_xticks(range(0, len(sites), every), sites[::every], rotation=45, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_ylabel("L2 norm of the vector")

    return _svg("norms", 3.2, draw)


def error_rates(metric: str, rows: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Rates with their intervals: one row a language, one colour and marker a label."""
    labels = list(dict.fromkeys(point.label for _, points in rows for point in points))

    def draw(axes: Axes) -> None:
        for i, label in enumerate(labels):
            y, rate, low, high = [], [], [], []
            for row, (_, points) in enumerate(rows):
                for point in points:
                    if point.label == label:
                        y.append(row + (i - (len(labels) - 1) / 2) * min(0.22, 0.8 / len(labels)))
                        rate.append(100 * point.rate)
                        low.append(100 * (point.rate - _or(point.low, point.rate)))
                        high.append(100 * (_or(point.high, point.rate) - point.rate))
            # Intervals of resampled rates may exclude the rate by a rounding error.
            spread = np.maximum([low, high], 0)
            axes.errorbar(rate, y, xerr=spread, linestyle="", capsize=3, markersize=6,
                          marker=_MARKERS[i % len(_MARKERS)], color=_COLOURS[i % SERIES],
                          label=_literal(label))  # fmt: skip
        axes.set_yticks(range(len(rows)), [_literal(language) for language, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{metric} in %, lower is better")

    legend = 0.2 * len(labels) / (1 if max(map(len, labels), default=0) > _LONG_LABEL else 2)
    height = max(0.42 * max(2, len(rows)), 0.1 * len(labels) * len(rows))
    return _svg(metric.lower(), 1.3 + legend + height, draw)


def gain_by_numbers(points: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Relative gain against trained numbers, one colour and marker a method."""

    def draw(axes: Axes) -> None:
        for i, (name, own) in enumerate(points.items()):
            axes.plot([n for n, _ in own], [100 * gain for _, gain in own], linestyle="", markersize=6,
                      marker=_MARKERS[i % len(_MARKERS)], color=_COLOURS[i % SERIES],
                      label=_literal(name))  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("trained numbers")
        axes.set_ylabel("gain in CER, %")

    return _svg("numbers", 3.0, draw)


def layer_curve(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Relative gain against the one encoder layer that is steered, one line a language."""

    def draw(axes: Axes) -> None:
        for i, (language, own) in enumerate(curves.items()):
            ordered = sorted(own)
            axes.plot([layer for layer, _ in ordered], [100 * gain for _, gain in ordered],
                      marker=_MARKERS[i % len(_MARKERS)], color=_COLOURS[i % SERIES],
                      label=_literal(language))  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("encoder layer steered alone")
        axes.set_ylabel("gain in CER, %")

    return _svg("layers", 3.0, draw)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _literal(text: str) -> str:
    """`text` as a label: matplotlib hides those that begin with an underscore."""
    return text.lstrip("_") or "-"


def _svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    settings: dict[Any, Any] = {
        "text.parse_math": False,  # names are no formulas
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same run gives the same bytes
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(_INKED, _INK),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        axes.grid(color=_INK, alpha=0.15)
        draw(axes)
        if labels := axes.get_legend_handles_labels()[1]:
            # Above the axes, where it covers no line.
            columns = 1 if max(map(len, labels)) > _LONG_LABEL else 2
            figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inline, a style element would reach the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # Figures share one page, so ids must differ between them.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(_INK, "var(--ink)")
    for i, colour in enumerate(_COLOURS):
        svg = svg.replace(colour, f"var(--series-{i})")
    # The width is the page's to choose; the viewBox keeps the shape.
    return re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(
        r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1), count=1)  # fmt: skip
