"""`salsa-dist fold`: an adapter into a plain checkpoint, for engines that know no steering."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from salsa_dist.commands.libraries import prepare_libraries
from salsa_dist.errors import UserError
from salsa_dist.log import result
from salsa_dist.places import place


def fold(
    adapter: Annotated[str, typer.Argument(help="folder of an adapter, or user/name@revision")],
    base: Annotated[str, typer.Option(help="folder or hub name of its base")],
    out: Annotated[Path, typer.Option(help="folder of the checkpoint; must not exist yet")],
    revision: Annotated[
        str | None, typer.Option(help="branch, tag or commit of a base on a hub")
    ] = None,
    scale: Annotated[float, typer.Option(help="factor of the adapter's vectors")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="accept an adapter of another base")] = False,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="fit biases if the adapter does not equal biases exactly"),
    ] = False,
    shards: Annotated[
        Any,
        typer.Option(
            "--clips",
            help="shards for --approximate: train clips to fit, dev clips to measure",
            parser=place,
        ),
    ] = None,
    max_clips: Annotated[
        int, typer.Option(min=1, help="maximum number of train clips, and of dev clips")
    ] = 32,
) -> None:
    """Write BASE with ADAPTER folded into its biases: a plain Hugging Face checkpoint.

    The checkpoint is reloaded and compared with the steered base before it is put in place. Adapters of
    the rule `salsa`, and layers without a bias, are refused. With --approximate, biases are fitted to
    such an adapter, and the error rates are printed before anything is written.
    """
    from salsa_dist.folding.approximate import Approximate
    from salsa_dist.folding.fold import fold as fold_into
    from salsa_dist.steering.vectors import SteeringVectors

    if approximate != (shards is not None):
        raise UserError("--approximate and --clips go together: name the shards to fit biases on")
    prepare_libraries()
    vectors = SteeringVectors.load(adapter).scaled(scale)
    near = Approximate(shards, max_clips, result) if approximate else None
    done = fold_into(base, vectors, out, revision=revision, force=force, approximate=near)
    for site, biases in done.biases.items():
        result(f"{site}  into {', '.join(biases)}")
    for precision, difference in done.differences.items():
        result(f"largest difference of a logit in {precision}: {difference:.3g} of {done.largest:.3g}")
    result(done.folder)
