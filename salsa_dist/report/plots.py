"""Plots of rates, losses, norms and cosines, as SVG text for a page.

loss_curves    {adapter: [(step, loss), …]}       one faint line per adapter, its running mean, dev loss
dev_rates      {adapter: [(steps, rate), …]}      one line per adapter
rates_by_scale {adapter: [(scale, rate), …]}      one line per adapter, and one for other languages
site_norms     {adapter: {site: norm}}            one line per adapter, broken between modules
error_rates    [(language, [Point, …]), …]        dots with intervals, one row per language
cosines        (names, names) numbers             a heat map with its numbers in it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from scipy.ndimage import uniform_filter1d

from salsa_dist.report.svg import COLOURS, INK, LONG_LABEL, MARKERS, SERIES, drawn, literal, style
from salsa_dist.steering.vector_facts import site_order


@dataclass(frozen=True)
class Point:
    """One method's rate, as a fraction, with its interval if there is one."""

    label: str
    rate: float
    low: float | None
    high: float | None


def loss_curves(
    losses: Mapping[str, Sequence[tuple[float, float | None]]],
    dev: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> str:
    """Loss of each adapter over its steps, and on dev clips. A step without a loss leaves a gap."""

    def draw(axes: Axes) -> None:
        smooth: list[np.ndarray] = []
        few = len(losses) <= SERIES
        for i, (name, points) in enumerate(losses.items()):
            steps = np.array([s for s, loss in points if loss is not None])
            values = np.array([loss for _, loss in points if loss is not None], dtype=np.float64)
            if not len(steps):
                continue
            mean = uniform_filter1d(values, size=max(3, len(values) // 12), mode="nearest")
            colour = COLOURS[i] if few else INK
            if few:
                axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8)
                axes.plot(steps, mean, color=colour, linewidth=2, label=literal(name))
                if own := (dev or {}).get(name):
                    axes.plot([s for s, _ in own], [loss for _, loss in own], color=colour,
                              marker=MARKERS[i], markersize=5, linewidth=1, linestyle=":")  # fmt: skip
            else:
                axes.plot(steps, mean, color=colour, linewidth=0.7, alpha=0.35)
                smooth.append(np.stack([steps, mean]))
        if smooth:
            steps = np.unique(np.concatenate([s[0] for s in smooth]))
            table = [np.interp(steps, s[0], s[1], left=np.nan, right=np.nan) for s in smooth]
            axes.plot(steps, np.nanmedian(table, axis=0), color=COLOURS[0], linewidth=2.5,
                      label=f"median of {len(smooth)}")  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")

    return drawn("loss", 3.0, draw)


def dev_rates(metric: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Error rate of each adapter on dev clips, by the steps that it had made."""
    return _rates(f"dev-{metric.lower()}", metric, "steps made", curves)


def rates_by_scale(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """CER of each adapter, by the scale of its vectors."""
    return _rates("scales", "CER", "scale of the vectors; 1: the adapter, 0: the base", curves)


def _rates(name: str, metric: str, by: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    def draw(axes: Axes) -> None:
        few = len(curves) <= SERIES
        for i, (label, points) in enumerate(curves.items()):
            places, rates = zip(*points, strict=True)
            axes.plot(places, [100 * rate for rate in rates], color=COLOURS[i] if few else INK,
                      marker=MARKERS[i] if few else None, markersize=5,
                      linewidth=1.5 if few else 0.7, alpha=1 if few else 0.35,
                      label=literal(label) if few else None)  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlabel(by)
        axes.set_ylabel(f"{metric} in %, lower is better")

    return drawn(name, 2.6, draw)


def site_norms(norms: Mapping[str, Mapping[str, float]]) -> str:
    """Length of each site's steering vector."""
    sites = sorted({site for of in norms.values() for site in of}, key=site_order)
    place = {site: i for i, site in enumerate(sites)}

    def draw(axes: Axes) -> None:
        few = len(norms) <= SERIES
        for i, (name, of) in enumerate(norms.items()):
            colour = COLOURS[i] if few else INK
            own = sorted(of, key=site_order)
            for j, (_, group) in enumerate(groupby(own, key=lambda s: site_order(s)[0])):
                part = list(group)
                axes.plot([place[s] for s in part], [of[s] for s in part], color=colour,
                          marker=MARKERS[i] if few else None, markersize=5,
                          linewidth=1.5 if few else 0.7, alpha=1 if few else 0.35,
                          label=literal(name) if few and j == 0 else None)  # fmt: skip
        if not few:
            median = [np.median([of[s] for of in norms.values() if s in of]) for s in sites]
            axes.plot(range(len(sites)), median, color=COLOURS[0], linestyle="", marker="o",
                      markersize=5, label=f"median of {len(norms)}")  # fmt: skip
        every = max(1, -(-len(sites) // 12))
        axes.set_xticks(range(0, len(sites), every), sites[::every], rotation=45, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        most = max((norm for of in norms.values() for norm in of.values()), default=0.0)
        axes.set_ylim(0, 1.08 * most or 1.0)
        axes.set_ylabel("L2 norm of the vector")

    return drawn("norms", 3.2, draw)


def error_rates(metric: str, rows: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Rates with their intervals: one row per language, one colour and marker per label."""
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
                          label=literal(label), **style(i))  # fmt: skip
        axes.set_yticks(range(len(rows)), [literal(language) for language, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{metric} in %, lower is better")

    legend = 0.2 * len(labels) / (1 if max(map(len, labels), default=0) > LONG_LABEL else 2)
    height = max(0.42 * max(2, len(rows)), 0.1 * len(labels) * len(rows))
    return drawn(metric.lower(), 1.3 + legend + height, draw)


def cosines(names: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Cosine between the vectors of each pair of `names`."""

    def draw(axes: Axes) -> None:
        size = 9 if len(names) <= 8 else 6.5
        for row, own in enumerate(values):
            for column, value in enumerate(own):
                if value is None:
                    continue
                # Pale enough for the number to be read on it, on a light page and on a dark one.
                colour = COLOURS[0] if value >= 0 else COLOURS[1]
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=0.65 * abs(value), lw=0
                    )
                )
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"
                axes.text(column, row, text.replace("-", "\u2212"), ha="center", va="center", size=size)
        shown = [literal(name) for name in names]
        steep = max(map(len, shown), default=0) > 3
        axes.set_xticks(range(len(names)), shown, rotation=45 if steep else 0,
                        ha="right" if steep else "center", rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(names)), shown)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(False)

    return drawn("cosines", min(4.1, 1.0 + 0.4 * len(names)), draw)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
