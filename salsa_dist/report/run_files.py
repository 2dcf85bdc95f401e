"""Reads the files of a run for a report, each with its own module. Any file may be missing or damaged.

    RUN/
    ├── config.yaml                    -> RunFiles.config, .config_text
    ├── events.jsonl                   -> .start, .starts, .placement, .steps, .store
    │                                     (run/events.py)
    ├── adapters/NAME/adapter.safetensors, or another method's tuned.safetensors
    │                                  -> .adapters, in the config's order
    └── evaluation/*.jsonl             -> .hypotheses, .scaled (evaluation/transcripts.py)
        └── summary.json               -> .evaluation, if it is there (evaluation/summary.py)

A run that was not evaluated has no hypotheses; whatever else is missing or damaged is a `UserError`
with the file and the command that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salsa_dist import json_file
from salsa_dist.config import Config, load_config
from salsa_dist.errors import UserError
from salsa_dist.evaluation import summary, transcripts
from salsa_dist.evaluation.summary import EvaluationSummary
from salsa_dist.evaluation.transcripts import Hypothesis
from salsa_dist.methods import tuned_file
from salsa_dist.run.events import History, history
from salsa_dist.run.folder import RunFolder
from salsa_dist.steering import adapter_bytes
from salsa_dist.steering.adapter_folder import FACTS, SCHEMA, VECTORS, is_mean


@dataclass(frozen=True)
class AdapterFile:
    name: str
    language: str
    rule: str
    sites: str
    file: str
    """Relative to the run's folder."""
    file_bytes: int
    trained_numbers: int
    window_s: float | None
    """Audio window that it was trained at; None where its facts do not say so."""
    silence_stride: int
    """1 in this many positions of the trailing padding was kept in training."""
    averaged: bool
    """Whether it is made of other adapters, and was not trained itself."""
    vectors: dict[str, NDArray[np.float32]]
    """By site, each `(hidden,)`; none where another method was trained."""


@dataclass(frozen=True, kw_only=True)
class RunFiles(History):
    config: Config
    config_text: str
    adapters: list[AdapterFile]
    hypotheses: list[Hypothesis]
    scaled: list[Hypothesis]
    """Those of adapters at other scales than 1."""
    evaluation: EvaluationSummary | None


def read_run(run: Path) -> RunFiles:
    """Read all files of `run`; `UserError` for the first that is missing or damaged."""
    folder = RunFolder(run)
    config_file = folder.config
    if not config_file.is_file():
        raise UserError(
            f"{config_file} is missing, so {run} is not a run: make one with `salsa-dist train CONFIG`"
        )
    config = load_config(config_file)
    every = transcripts.hypotheses(run)
    return RunFiles(
        **vars(history(run)),
        config=config,
        config_text=config_file.read_text(encoding="utf-8"),
        adapters=_adapters(run, config, folder.command("train")),
        hypotheses=[h for h in every if h.scale == 1],
        scaled=[h for h in every if h.scale != 1],
        evaluation=summary.read(run),
    )


def _adapters(run: Path, config: Config, command: str) -> list[AdapterFile]:
    if not config.method.trains:
        return []
    if not config.method.steers:
        return [_read_tuned(run, adapter.name) for adapter in config.adapters]
    return [_read_adapter(run, adapter.name, command) for adapter in config.adapters]


def _read_tuned(run: Path, name: str) -> AdapterFile:
    folder = RunFolder(run).adapter(name)
    facts = tuned_file.facts(folder)
    file = folder / tuned_file.NAME
    return AdapterFile(
        name=name,
        language=facts["language"],
        rule=facts["method"]["kind"],
        sites=facts["sites"],
        file=str(file.relative_to(run)),
        file_bytes=file.stat().st_size,
        trained_numbers=facts["trained_numbers"],
        window_s=_trained_with(facts, "window_s"),
        silence_stride=1,
        averaged=False,
        vectors={},
    )


def _read_adapter(run: Path, name: str, command: str) -> AdapterFile:
    file = RunFolder(run).adapter(name) / VECTORS
    if not file.is_file():
        raise UserError(f"{file} is missing: the run has not ended; continue it with `{command}`")
    try:
        vectors, metadata = adapter_bytes.unpack(adapter_bytes.read(file), file)
    except UserError as e:
        raise UserError(f"{e}; `{command}` makes it again") from e
    if "language" not in metadata:
        raise UserError(
            f"{file} is damaged (its metadata has no language): make it again with `{command}`"
        )
    facts = json_file.peek(file.parent / FACTS, SCHEMA)
    return AdapterFile(
        name=name,
        language=metadata["language"],
        rule=metadata["rule"],
        sites=metadata["sites"],
        file=str(file.relative_to(run)),
        file_bytes=file.stat().st_size,
        trained_numbers=sum(v.numel() for v in vectors.values()),
        window_s=_trained_with(facts, "window_s"),
        silence_stride=int(_trained_with(facts, "silence_stride") or 1),
        averaged=is_mean(facts),
        vectors={site: v.numpy() for site, v in vectors.items()},
    )


def _trained_with(facts: Mapping[str, Any], key: str) -> float | None:
    """A number in the facts about an adapter's training; None where they don't have it."""
    training = facts.get("training")
    found = training.get(key) if isinstance(training, dict) else None
    return found if isinstance(found, int | float) else None
