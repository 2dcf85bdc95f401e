"""`salsa-dist push`: an adapter onto a model hub, its card with the results of the run that made it.

RUN/adapters/NAME ──> user/name      RUN's scores, computed from its transcripts ──> the card
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salsa_dist.log import log, result

if TYPE_CHECKING:  # torch comes with it
    from salsa_dist.steering.model_card import Score


def push(
    adapter: Annotated[Path, typer.Argument(help="folder of an adapter")],
    name: Annotated[str, typer.Argument(help="user/name on the hub")],
    revision: Annotated[
        str | None, typer.Option(help="branch, created if it does not exist; default: the main branch")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    may_publish: Annotated[
        str | None,
        typer.Option(help="name of the training corpus: publish although it has no open licence"),
    ] = None,
) -> None:
    """Push ADAPTER to a model hub as NAME, with a card; print the address of the commit.

    The card has the results of the adapter's run, if it was evaluated. Log in to the hub first: set
    HF_TOKEN, or run `hf auth login`.
    """
    from salsa_dist.steering.vectors import SteeringVectors

    vectors = SteeringVectors.load(adapter)
    scores = scores_of(adapter, vectors.name)
    if not scores:
        log.warning(f"adapter {adapter} has no results: its card says none; evaluate its run first")
    result(
        vectors.push_to_hub(
            name, revision=revision, private=private, may_publish=may_publish, scores=scores
        )
    )


def scores_of(adapter: Path, name: str) -> list[Score]:
    """Scores from the run RUN of an adapter's folder RUN/adapters/NAME; empty for other folders."""
    from salsa_dist.report.one_run import build_report
    from salsa_dist.run.folder import RunFolder
    from salsa_dist.steering.model_card import Score

    run = adapter.resolve().parents[1]
    folder = RunFolder(run)
    if adapter.resolve().parent != folder.adapters or not folder.events.is_file():
        return []
    tree = build_report(run)
    measured = {
        (r["language"], r["split"], r["window_s"]): r for r in tree["results"] if r["adapter"] == name
    }
    scores = []
    for gain in tree["gains"]:
        of = measured.get((gain["language"], gain["split"], gain["window_s"]))
        if gain["adapter"] == name and of is not None:
            low, high = of[f"{gain['metric']}_low"], of[f"{gain['metric']}_high"]
            scores.append(
                Score(
                    language=gain["language"],
                    split=gain["split"],
                    metric=gain["metric"],
                    window_s=gain["window_s"],
                    utterances=of["utterances"],
                    zero_shot=gain["baseline"],
                    steered=gain["steered"],
                    low=low,
                    high=high,
                    gain=gain["relative"],
                    gain_low=gain["relative_low"],
                    gain_high=gain["relative_high"],
                    normaliser=tree["definitions"]["normaliser"],
                )
            )
    return scores
