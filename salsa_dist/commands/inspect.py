"""`salsa-dist inspect`: shows the sites of a base; or an adapter, its norms and similar adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salsa_dist.commands.libraries import prepare_libraries
from salsa_dist.errors import UserError
from salsa_dist.log import log, result

if TYPE_CHECKING:  # torch comes with it
    from salsa_dist.steering.vectors import SteeringVectors

Plot = Annotated[
    Path | None,
    typer.Option(help="write a plot of the norms per layer of an adapter to this .svg file"),
]


def inspect(
    base: Annotated[str, typer.Argument(help="folder or hub name of a base, or an adapter")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="path of an unusual layer list: encoder=model.audio_tower.layers"),
    ] = None,
    near: Annotated[
        list[str] | None,
        typer.Option(
            help="other adapters, or a folder with adapters below it: list them by their cosine with "
            "this adapter; repeatable"
        ),
    ] = None,
    plot: Plot = None,
) -> None:
    """Show the sites of a base, each tested with one forward and backward pass; or show an adapter.

    A folder with config.json and no weights is shown without a probe. Of an adapter: what it was made
    for and trained on, the norm of its vector per layer, and the adapters that are most like it.
    """
    if is_adapter(base):
        if layers:
            raise UserError(f"--layers is about a base, {base} is an adapter")
        _show(base, near or [], plot, as_json)
        return
    if near or plot is not None:
        raise UserError(f"--near and --plot are about an adapter, {base} is none")
    from salsa_dist.speech_llms.inspection import inspect_base

    prepare_libraries()
    named = dict(part.partition("=")[::2] for part in layers or [])
    inspection = inspect_base(base, named)
    result(json.dumps(inspection.tree(), indent=1) if as_json else inspection.table())


def _show(name: str, near: list[str], plot: Path | None, as_json: bool) -> None:
    from salsa_dist.steering.adapter_view import about, described
    from salsa_dist.steering.vectors import SteeringVectors

    vectors = SteeringVectors.load(name)
    others = {where: of for text in near for where, of in _others(text).items()}
    own = Path(name).resolve()
    tree = about(vectors, {w: of for w, of in others.items() if Path(w).resolve() != own})
    result(json.dumps(tree, indent=1, ensure_ascii=False) if as_json else described(tree))
    if plot is not None:
        plot_norms({vectors.name: vectors.norms()}, plot)


def plot_norms(norms: dict[str, dict[str, float]], file: Path) -> None:
    """Write the plot of norms per layer.

    Raises:
        UserError: it can't be written, or is to be no .svg file.
    """
    from salsa_dist.report import plots, svg
    from salsa_dist.whole_file import replace_file

    if file.suffix.lower() != ".svg":
        raise UserError(f"--plot {file}: plots are SVG, name a file that ends in .svg")
    try:
        replace_file(file, svg.alone(plots.site_norms(norms)))
    except OSError as e:
        raise UserError(f"--plot {file} can't be written ({e.strerror})") from e


def is_adapter(name: str) -> bool:
    """Whether a file, folder or hub name is an adapter; False if it does not exist."""
    path = Path(name)
    if name.endswith(".safetensors") or (path / "adapter.json").is_file():
        return True
    from salsa_dist.steering import hub

    if path.exists() or (parts := hub.name_and_revision(name)) is None:
        return False
    # No base is named with its revision.
    return parts[1] is not None or hub.has(*parts, "adapter.json")


def _others(name: str) -> dict[str, SteeringVectors]:
    """The adapter with this name, or the adapters below a folder, by path."""
    from salsa_dist.steering.vectors import SteeringVectors

    if not Path(name).is_dir() or is_adapter(name):
        return {name: SteeringVectors.load(name)}
    found = {}
    for file in sorted(Path(name).rglob("adapter.json")):
        if not file.parent.name.startswith("."):  # one that is being written
            try:
                found[str(file.parent)] = SteeringVectors.load(file.parent)
            except UserError as e:
                log.warning(str(e))
    if not found:
        raise UserError(f"--near {name}: no adapter is in this folder or below it")
    return found
