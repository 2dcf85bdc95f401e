"""`salsa-dist export`: an adapter for another engine's own steering."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salsa_dist.log import result


def export(
    adapter: Annotated[str, typer.Argument(help="folder of an adapter, or user/name@revision")],
    to: Annotated[str, typer.Option(help="engine: llama.cpp or easysteer")],
    out: Annotated[Path, typer.Option(help="GGUF file; easysteer also writes a .json next to it")],
    scale: Annotated[float, typer.Option(help="factor of the adapter's vectors")] = 1.0,
) -> None:
    """Write ADAPTER as a llama.cpp control vector, or as an EasySteer / vLLM steering spec.

    The adapter must steer only layers of the LLM. llama.cpp also needs the rule `add`.
    """
    from salsa_dist.export.control_vector import export as write
    from salsa_dist.steering.vectors import SteeringVectors

    for path in write(SteeringVectors.load(adapter).scaled(scale), to, out):
        result(path)
