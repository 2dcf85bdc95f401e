"""`salsa-dist shards build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(help="Make tar shards of a corpus.", no_args_is_help=True)


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="name of a recipe in shards/, such as tuxpaint")],
    source: Annotated[Path, typer.Argument(help="folder of the corpus")],
    out: Annotated[Path, typer.Argument(help="folder for the shards")],
    languages: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="language codes joined by commas; default: all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the split and the order")] = 0,
) -> None:
    """Turn a corpus into tar shards with an index.json."""
    from salsa_dist.data.build import build as build_shards

    build_shards(recipe, source, out, languages.split(",") if languages else None, seed)
