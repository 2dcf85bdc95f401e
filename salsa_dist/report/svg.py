"""Figures as SVG text for a page.

    drawn(name, height, draw)      draw(axes) draws; the text comes out without size, fonts or colours
    alone(svg)                     the same as a file of its own, in the light page's colours

Colours are CSS variables (`--ink`, `--series-0` …) and text stays text, so that the page decides on
light or dark and on the font, and scripts that matplotlib's font lacks still show.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SERIES = 6
"""Colours there are; look at `style` for more series than that."""

# Stand-ins that no palette uses, swapped for CSS variables in the finished SVG.
INK = "#010203"
COLOURS = [f"#0a0b{10 + i:02x}" for i in range(SERIES)]
MARKERS = "osD^vP"
_INKED = ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"]
LONG_LABEL = 22  # letters; two columns of longer ones would be cut off
_LINE = 50  # letters of the figure's width
_LINE_INCHES = 0.15  # of a further line in a legend
_WIDTH = 4.1  # inches: shown at about this size on a phone too, so that its text stays legible


def style(i: int) -> dict[str, Any]:
    """Colour and marker of series `i`; no two of the first 36 share both."""
    return {"color": COLOURS[i % SERIES], "marker": MARKERS[(i + i // SERIES) % SERIES]}


def literal(text: str) -> str:
    """`text` as a label: matplotlib hides those that begin with an underscore."""
    return text.lstrip("_") or "-"


def lines(text: str) -> str:
    """`text` as a label, in as many lines as the figure's width asks for."""
    if len(text) <= _LINE:
        return literal(text)
    # Sites have no spaces: a line may end behind any +.
    parts = literal(text).replace("+", "+\u2060 ")
    filled = textwrap.fill(parts, _LINE, break_on_hyphens=False)
    return filled.replace("\u2060 ", "").replace("\u2060", "")


def drawn(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """The SVG of what `draw` puts into the axes, with a legend above them.

    Args:
        name: of the figure, unlike any other's on its page.
        height: inches, of 4.1 of width; further lines of long names in the legend are added to it.
    """
    settings: dict[Any, Any] = {
        "text.parse_math": False,  # names are no formulas
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same run gives the same bytes
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(_INKED, INK),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        axes.grid(color=INK, alpha=0.15)
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            # Above the axes, where it covers no line.
            longest = max(map(len, labels))
            columns = 1 if longest > LONG_LABEL else 2 if longest > 7 else 4
            labels = [lines(label) for label in labels]
            figure.set_figheight(height + _LINE_INCHES * sum(label.count("\n") for label in labels))
            figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False,
                          fontsize=9)  # fmt: skip
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inline, a style element would reach the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # Figures share one page, so ids must differ between them.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "var(--ink)")
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--series-{i})")
    # The width is the page's to choose; the viewBox keeps the shape.
    return re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(
        r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1), count=1)  # fmt: skip


def alone(svg: str) -> str:
    """A figure as the text of an .svg file, outside of a page."""
    style = Path(__file__).with_name("style.html").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", style.partition("@media")[0]))
    svg = re.sub(r"var\((--[\w-]+)\)", lambda match: colours[match[1]], svg)
    page = f'<rect width="100%" height="100%" fill="{colours["--page"]}"/>'
    return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(
        r"(<svg[^>]*>)", rf"\1{page}", svg, count=1
    )
