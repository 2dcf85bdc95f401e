"""The figures of a comparison, as SVG text to be put inline into its page.

gains            [(method or sites, {language: Gain}), …]   a row each, a dot a language
gain_by_numbers  {kind: [(numbers, mean, low, high), …]}    a dot a method, on a log scale
layer_curve      {language: [(layer, gain), …]}             a line a language, and their mean
gain_by_minutes  {language: [(minutes, Gain), …]}           a line a language
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from salsa_dist.evaluation.svg import INK, drawn, literal, style

_MOST = 46  # letters that fit the figure's width


@dataclass(frozen=True)
class Gain:
    """A relative gain as a fraction, with its interval where there is one."""

    value: float
    low: float | None
    high: float | None

    @property
    def arms(self) -> tuple[float, float]:
        """From the value to the interval's ends, in %."""
        # Intervals of resampled gains may exclude the gain by a rounding error.
        return (
            0.0 if self.low is None else max(0.0, 100 * (self.value - self.low)),
            0.0 if self.high is None else max(0.0, 100 * (self.high - self.value)),
        )


def gains(name: str, rows: Sequence[tuple[str, Mapping[str, Gain]]]) -> str:
    """Gain in CER of each row, a dot with its interval a language, and their mean as a bar.

    Long intervals are cut off at the edge, so that the gains can be told apart.
    """
    languages = sorted({language for _, own in rows for language in own})
    lanes = max(1, len(languages))

    def draw(axes: Axes) -> None:
        for i, language in enumerate(languages):
            points = [(row, own[language]) for row, (_, own) in enumerate(rows) if language in own]
            # Below the row's name, each language on a line of its own.
            y = [row + 0.02 + 0.4 * (i + 0.5) / lanes for row, _ in points]
            x = [100 * gain.value for _, gain in points]
            spread = list(zip(*(gain.arms for _, gain in points), strict=True))
            axes.errorbar(x, y, xerr=spread, linestyle="", markersize=5, elinewidth=1,
                          label=literal(language), **style(i))  # fmt: skip
        for row, (label, own) in enumerate(rows):
            if not own:
                continue
            middle = 100 * mean(gain.value for gain in own.values())
            if len(languages) > 1:
                axes.plot([middle, middle], [row, row + 0.44], color=INK, linewidth=2)
            short = label if len(label) <= _MOST else label[: _MOST - 1] + "…"
            said = f"{literal(short)}, {middle:.0f}%".replace("-0%", "0%").replace(", -", ", −")
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

    return drawn(name, 0.9 + 0.05 * len(languages) + (0.28 + 0.075 * lanes) * len(rows), draw)


def gain_by_numbers(points: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> str:
    """Mean gain in CER over languages against trained numbers, its line from the worst to the best."""

    def draw(axes: Axes) -> None:
        for i, (name, own) in enumerate(points.items()):
            x = [n for n, _, _, _ in own]
            y = [100 * middle for _, middle, _, _ in own]
            spread = [
                [100 * (middle - low) for _, middle, low, _ in own],
                [100 * (high - middle) for _, middle, _, high in own],
            ]
            axes.errorbar(x, y, yerr=spread, linestyle="", markersize=6, elinewidth=0.8,
                          label=literal(name), **style(i))  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("trained numbers")
        axes.set_ylabel("gain in CER, %")

    return drawn("numbers", 3.0, draw)


def layer_curve(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Gain against the one encoder layer that is steered, one line a language, and their mean."""

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
        axes.set_xlabel("encoder layer steered alone")
        axes.set_ylabel("gain in CER, %")

    return drawn("layers", 3.0, draw)


def gain_by_minutes(curves: Mapping[str, Sequence[tuple[float, Gain]]]) -> str:
    """Gain in CER against minutes of training speech, one line a language."""

    def draw(axes: Axes) -> None:
        for i, (language, own) in enumerate(curves.items()):
            ordered = sorted(own, key=lambda point: point[0])
            y = [100 * gain.value for _, gain in ordered]
            spread = list(zip(*(gain.arms for _, gain in ordered), strict=True))
            axes.errorbar([m for m, _ in ordered], y, yerr=spread, linewidth=1.5, elinewidth=0.8,
                          capsize=2, label=literal(language), **style(i))  # fmt: skip
        axes.set_xscale("log")
        sizes = sorted({minutes for own in curves.values() for minutes, _ in own})
        # Of sizes that lie closer than their numbers are wide, the first gets its number.
        told = [x for k, x in enumerate(sizes) if k == 0 or x > 1.25 * sizes[k - 1]]
        axes.set_xticks(told, [f"{x:.3g}" for x in told])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("minutes of training speech")
        axes.set_ylabel("gain in CER, %")

    return drawn("minutes", 3.0, draw)
