"""Plots of gains over zero-shot, as SVG text for a page.

gains            [(method or sites, {language: Gain}), …]   one row each, one dot per language
gain_by_numbers  {kind: [Trained, …]}                       one mark per method, on a log scale
layer_curve      {language: [(layer, gain), …]}             one line per language, and their mean
gain_by_minutes  {language: [(minutes, Gain), …]}           one line per language
gain_by_steps    {method: {steps: {language: gain}}}        one line per method
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from salsa_dist.report.svg import INK, drawn, lines, literal, style


@dataclass(frozen=True)
class Gain:
    """A relative gain as a fraction, with its interval if there is one."""

    value: float
    low: float | None
    high: float | None

    @property
    def arms(self) -> tuple[float, float]:
        """Lengths from the value to the ends of the interval, in %."""
        # Intervals of resampled gains may exclude the gain by a rounding error.
        return (
            0.0 if self.low is None else max(0.0, 100 * (self.value - self.low)),
            0.0 if self.high is None else max(0.0, 100 * (self.high - self.value)),
        )


@dataclass(frozen=True)
class Trained:
    """A method with how many numbers it trains, and its gain as a fraction by language."""

    name: str
    numbers: int
    gains: Mapping[str, float]

    @property
    def mean(self) -> float:
        return mean(self.gains.values())


def gains(name: str, rows: Sequence[tuple[str, Mapping[str, Gain]]]) -> str:
    """Gain in CER of each row: one dot with its interval per language, and a bar for their mean.

    Long intervals are cut off at the edge, so that the gains can be told apart.
    """
    languages = sorted({language for _, own in rows for language in own})
    lanes = max(1, len(languages))
    named = [lines(f"{label}, {_mean_of(own)}" if own else label) for label, own in rows]
    most = max((name.count("\n") for name in named), default=0)

    def draw(axes: Axes) -> None:
        for i, language in enumerate(languages):
            points = [(row, own[language]) for row, (_, own) in enumerate(rows) if language in own]
            # Below the row's name, each language on a line of its own.
            y = [row + 0.02 + 0.4 * (i + 0.5) / lanes for row, _ in points]
            x = [100 * gain.value for _, gain in points]
            spread = list(zip(*(gain.arms for _, gain in points), strict=True))
            axes.errorbar(x, y, xerr=spread, linestyle="", markersize=5, elinewidth=1,
                          label=literal(language), **style(i))  # fmt: skip
        for row, ((_, own), said) in enumerate(zip(rows, named, strict=True)):
            if not own:
                continue
            if len(languages) > 1:
                middle = 100 * mean(gain.value for gain in own.values())
                axes.plot([middle, middle], [row, row + 0.44], color=INK, linewidth=2)
            axes.text(0.0, row - 0.04, said, transform=axes.get_yaxis_transform(), va="bottom", size=9)
        values = [100 * gain.value for _, own in rows for gain in own.values()]
        room = 5 + 0.3 * (max(values) - min(values))
        ends = [100 * end for _, own in rows for g in own.values() for end in (g.low, g.high) if end]
        axes.set_xlim(
            max(min([*values, *ends, 0]) - 2, min(*values, 0) - room),
            min(max([*values, *ends]) + 2, max(values) + room),
        )
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.45)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("gain in CER, %")

    row_height = 0.28 + 0.075 * lanes + 0.22 * most
    return drawn(name, 0.9 + 0.05 * len(languages) + row_height * len(rows), draw)


def _mean_of(gains: Mapping[str, Gain]) -> str:
    """Their mean in whole %, such as −12%."""
    middle = f"{100 * mean(gain.value for gain in gains.values()):.0f}"
    return f"{'0' if middle == '-0' else middle.replace('-', '−')}%"


def gain_by_numbers(points: Mapping[str, Sequence[Trained]]) -> str:
    """Mean gain in CER over languages against trained numbers, with a tick for each language.

    Methods of equal numbers stand side by side; a kind is named by its best.
    """
    at: dict[int, list[Trained]] = {}
    for own in points.values():
        for method in own:
            at.setdefault(method.numbers, []).append(method)
    few, many = min(at), max(at)
    step = 0.018 * max(1.0, math.log10(many / few))  # decades between neighbours

    def place(method: Trained) -> float:
        own = sorted(at[method.numbers], key=lambda m: m.mean)
        return float(method.numbers * 10 ** (step * (own.index(method) - (len(own) - 1) / 2)))

    def draw(axes: Axes) -> None:
        for i, own in enumerate(points.values()):
            shape = style(i)
            for method in own:
                x, ys = place(method), [100 * gain for gain in method.gains.values()]
                axes.plot([x, x], [min(ys), max(ys)], color=shape["color"], linewidth=0.7, alpha=0.6)
                axes.plot([x] * len(ys), ys, color=shape["color"], linestyle="", marker="_",
                          markersize=5, alpha=0.8)  # fmt: skip
            axes.plot([place(m) for m in own], [100 * m.mean for m in own], linestyle="", markersize=6,
                      label=literal(max(own, key=lambda m: m.mean).name), **shape)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(few / 1.6, many * 1.6)
        axes.axhline(0, color=INK, linewidth=0.8)
        _ticks_at(axes, sorted(at), 1.2 + 0.3 * math.log10(many / few), "{:,.0f}")
        axes.set_xlabel("trained numbers")
        axes.set_ylabel("gain in CER, %")

    return drawn("numbers", 3.0 + 0.2 * len(points), draw)


def layer_curve(component: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Gain by the single steered layer of a component: one line per language, and their mean."""

    def draw(axes: Axes) -> None:
        for i, (language, own) in enumerate(curves.items()):
            ordered = sorted(own)
            axes.plot([layer for layer, _ in ordered], [100 * gain for _, gain in ordered],
                      linewidth=1, label=literal(language), **style(i))  # fmt: skip
        layers = sorted({layer for own in curves.values() for layer, _ in own})
        if len(curves) > 1:
            middle = [
                100 * mean(g for own in curves.values() for at, g in own if at == x) for x in layers
            ]
            axes.plot(layers, middle, color=INK, linewidth=2.5, label="mean")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(f"{component} layer steered alone")
        axes.set_ylabel("gain in CER, %")

    return drawn(f"{component}-layers", 3.0, draw)


def gain_by_minutes(curves: Mapping[str, Sequence[tuple[float, Gain]]]) -> str:
    """Gain in CER against minutes of training speech, one line per language."""

    def draw(axes: Axes) -> None:
        for i, (language, own) in enumerate(curves.items()):
            ordered = sorted(own, key=lambda point: point[0])
            y = [100 * gain.value for _, gain in ordered]
            spread = list(zip(*(gain.arms for _, gain in ordered), strict=True))
            axes.errorbar([m for m, _ in ordered], y, yerr=spread, linewidth=1.5, elinewidth=0.8,
                          capsize=2, label=literal(language), **style(i))  # fmt: skip
        axes.set_xscale("log")
        _ticks_at(axes, sorted({m for own in curves.values() for m, _ in own}), 1.25, "{:.3g}")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("minutes of training speech")
        axes.set_ylabel("gain in CER, %")

    return drawn("minutes", 3.0, draw)


def gain_by_steps(curves: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Mean gain in CER over languages against training steps: a line per method, ticks per language."""

    def draw(axes: Axes) -> None:
        for i, (method, own) in enumerate(curves.items()):
            shape = style(i)
            points = [(steps, mean(gains.values())) for steps, gains in sorted(own.items())]
            for steps, gains in own.items() if max(map(len, own.values())) > 1 else ():
                axes.plot([steps] * len(gains), [100 * gain for gain in gains.values()], linestyle="",
                          color=shape["color"], marker="_", markersize=5, alpha=0.8)  # fmt: skip
            axes.plot([steps for steps, _ in points], [100 * gain for _, gain in points],
                      linewidth=1.5, label=literal(method), **shape)  # fmt: skip
        axes.set_xscale("log")
        _ticks_at(axes, sorted({steps for own in curves.values() for steps in own}), 1.25, "{:,.0f}")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("training steps")
        axes.set_ylabel("gain in CER, %")

    return drawn("steps", 3.0 + 0.2 * len(curves), draw)


def _ticks_at(axes: Axes, places: Sequence[float], apart: float, text: str) -> None:
    """Ticks of a log axis at the marks; of marks closer than a factor of `apart`, only the first."""
    told: list[float] = []
    for place in places:
        if not told or place > apart * told[-1]:
            told.append(place)
    axes.set_xticks(told, [text.format(place) for place in told])
    axes.xaxis.set_minor_formatter(NullFormatter())
