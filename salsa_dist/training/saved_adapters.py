"""The adapters of a finished run: each in its own folder, with the facts about its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from salsa_dist import json_file
from salsa_dist.config import Config
from salsa_dist.data.index import ShardIndex
from salsa_dist.errors import UserError
from salsa_dist.run.folder import RunFolder
from salsa_dist.speech_llms.family import stand_ins
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.adapter_folder import (
    FACTS,
    SCHEMA,
    DataFacts,
    TrainingFacts,
    is_mean,
    known_as,
)
from salsa_dist.steering.attachment import describe
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.optimizer import PackedAdam
from salsa_dist.training.silence_stride import ends_of, stride_of


def save_adapters(
    folder: Path,
    trained: PackedAdam,
    config: Config,
    speech_llm: SpeechLLM,
    index: ShardIndex,
    made: Mapping[str, int],
) -> list[Path]:
    """Write each adapter of the bank to its own folder, with the facts about its training.

    Args:
        made: adapters that are not those after their last step, and the steps that they made.
    """
    licence = index.recipe.get("licence")
    bank, paths = trained.bank, []
    # A mean difference has neither.
    rates = trained.highest_rates() or [0.0] * len(bank.specs)
    estimated = [schedule.lr is None for schedule in trained.schedules] or [False] * len(bank.specs)
    for row, (spec, adapter) in enumerate(zip(bank.specs, config.adapter_settings(), strict=True)):
        vectors = SteeringVectors(
            bank.row(row),
            spec.rule,
            name=spec.name,
            language=adapter.language,
            **describe(speech_llm),
            data=DataFacts(
                name=known_as(index.name),
                shards=index.hash,
                languages=list(adapter.languages),
                licence=licence if isinstance(licence, str) else None,
                stand_ins=stand_ins(speech_llm.family, adapter.languages),
            ),
            training=TrainingFacts(
                steps=made.get(spec.name, adapter.steps),
                lr=float(f"{rates[row]:.6g}"),
                lr_estimated=estimated[row],
                lr_scale=scales_of(trained, row, spec.sites),
                seed=adapter.seed,
                window_s=speech_llm.window_s,
                silence_stride=stride_of(speech_llm.family, row),
                silence_ends_s=ends_of(speech_llm.family, row),
                salsa_dist=version("salsa-dist"),
            ),
        )
        paths.append(vectors.save(folder / spec.name))
    return paths


def refuse_averaged(run: Path, names: Sequence[str]) -> None:
    """Refuse to train in a run that holds a mean of adapters: it would be replaced.

    Raises:
        UserError: one of its adapters was not trained.
    """
    for name in names:
        folder = RunFolder(run).adapter(name)
        if is_mean(json_file.peek(folder / FACTS, SCHEMA)):
            raise UserError(
                f"{folder} is a mean of adapters, which training would replace: evaluate it, or train "
                "in another run"
            )


def scales_of(trained: PackedAdam, row: int, sites: Sequence[str]) -> dict[str, float] | None:
    """Learning-rate multipliers of an adapter's sites; None if all are 1."""
    scales = {site: float(f"{trained.scales[site][row].item():.6g}") for site in sites}
    return scales if set(scales.values()) - {1.0} else None
