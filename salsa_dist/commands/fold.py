"""`salsa-dist fold`: an adapter into a plain checkpoint, for engines that know no steering."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from salsa_dist.log import result


def fold(
    adapter: Annotated[str, typer.Argument(help="folder of an adapter, or user/name@revision")],
    base: Annotated[str, typer.Option(help="folder or hub name of its base")],
    out: Annotated[Path, typer.Option(help="folder of the checkpoint; must not exist yet")],
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="branch, tag or commit of a base on a hub"),
    ] = None,
    scale: Annotated[float, typer.Option(help="factor of the adapter's vectors")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="accept an adapter of another base")] = False,
) -> None:
    """Write BASE with ADAPTER folded into its biases: a plain Hugging Face checkpoint.

    The checkpoint is reloaded and compared with the steered base before it gets its name. An adapter
    whose rule keeps the norm, or a base without biases, is refused.
    """
    from salsa_dist.folding.fold import fold as fold_into
    from salsa_dist.steering.vectors import SteeringVectors

    vectors = SteeringVectors.load(adapter).scaled(scale)
    done = fold_into(base, vectors, out, revision=revision, force=force)
    for site, bias in done.biases.items():
        result(f"{site}  into {bias}")
    for precision, difference in done.differences.items():
        result(f"largest difference of a logit in {precision}: {difference:.3g} of {done.largest:.3g}")
    result(done.folder)
