"""`salsa-dist compare`: compares two adapters."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from salsa_dist.commands.inspect import Plot, plot_norms
from salsa_dist.log import result


def compare(
    first: Annotated[str, typer.Argument(help="folder of an adapter, or user/name@revision")],
    second: Annotated[str, typer.Argument(help="another one")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plot: Plot = None,
) -> None:
    """Compare two adapters: base, sites, training data, and their vectors per layer.

    Scores of runs are compared by `salsa-dist report RUN RUN`.
    """
    from salsa_dist.steering.adapter_view import compared, comparison
    from salsa_dist.steering.vectors import SteeringVectors

    one, two = (SteeringVectors.load(name) for name in (first, second))
    tree = comparison(one, two)
    result(json.dumps(tree, indent=1, ensure_ascii=False) if as_json else compared(tree))
    if plot is not None:
        names = [one.name, two.name] if one.name != two.name else [first, second]
        plot_norms(dict(zip(names, (one.norms(), two.norms()), strict=True)), plot)
