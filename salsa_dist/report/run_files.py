"""Reading the files of a run, for its report. Nothing is trusted: every line is checked.

    RUN/
    ├── config.yaml                    -> RunFiles.config, .config_text
    ├── events.jsonl                   -> .start, .starts, .placement, .steps (the last of each step)
    ├── adapters/NAME/adapter.safetensors, or another method's tuned.safetensors
    │                                  -> .adapters, in the config's order
    └── evaluation/*.jsonl             -> .hypotheses (the last line of each clip), in a fixed order
        └── summary.json               -> .evaluation, if it is there

A run that was not evaluated has no hypotheses; whatever else is missing or damaged is a `UserError`
with the file and the command that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from salsa_dist.config import Config, load_config
from salsa_dist.errors import UserError
from salsa_dist.evaluation import transcripts
from salsa_dist.json_file import of_another_release
from salsa_dist.methods import tuned_file
from salsa_dist.run import events
from salsa_dist.run.folder import RunFolder
from salsa_dist.steering import adapter_file
from salsa_dist.steering.adapter_folder import VECTORS


class _Line(BaseModel):
    """One line of a file. Fields that we do not read may be there."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Event(_Line):
    event: str


class Base(_Line):
    name: str
    revision: str | None
    parameters: int


class Start(_Line):
    base: Base
    environment: dict[str, str | int | float | bool | None]


class Placement(_Line):
    """Measured; each number is that of the rank with the most."""

    kind: str | int
    world_size: int
    group_size: int
    base_bytes: int
    resident_bytes_between_steps: int
    peak_bytes: int
    gathered_bytes_per_step: int
    reduced_bytes_per_step: int
    threshold_bytes: int | None = None
    """Small weights that stay whole on every rank."""
    partitioned_bytes: int | None = None
    """A rank's parts of the base; 0 where each rank has the whole."""
    bytes_between_nodes_per_step: int | None = None
    """That a node sends."""


class Data(_Line):
    adapter: str
    clips: int
    minutes: float | None = None
    """Of speech that it was trained on."""
    left_out: int


class BadSample(_Line):
    kind: str
    shard: str
    key: str


class BadSamples(_Line):
    samples: list[BadSample]


class AdapterStep(_Line):
    loss: float | None


class Step(_Line):
    step: int
    seconds: float
    clips: int
    audio_seconds: float | None = None
    padding: float | None = None
    """Share of the audio's frames that is padding to the longest clip of a pass."""
    adapters: dict[str, AdapterStep]


class Hypothesis(_Line):
    key: str
    language: str
    split: str
    method: str
    adapter: str | None
    window_s: float
    reference: str
    hypothesis: str
    finished: bool
    fields: dict[str, str | int | float | bool] = {}
    """What else the shards say of the clip."""

    @property
    def speaker(self) -> str | None:
        known = self.fields.get("speaker")
        return None if known is None else str(known)


class EvaluationSummary(_Line):
    seconds: float | None = None
    clips_per_second: float | None = None
    max_new_tokens: int | None = None
    batch: int | None = None
    device: str | None = None
    device_hours: float | None = None
    """GPU-hours, or hours of CPU cores."""


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
    vectors: dict[str, NDArray[np.float32]]
    """By site, each `(hidden,)`; none where another method was trained."""


@dataclass(frozen=True, kw_only=True)
class Events:
    """What `events.jsonl` tells."""

    start: Start
    starts: int
    """How often training was started: one, and one for each resume."""
    placement: Placement | None
    data: list[Data]
    bad_samples: list[BadSample]
    """Each once, however often it was sampled."""
    steps: list[Step]
    """The last of each number."""


@dataclass(frozen=True, kw_only=True)
class RunFiles(Events):
    config: Config
    config_text: str
    adapters: list[AdapterFile]
    hypotheses: list[Hypothesis]
    evaluation: EvaluationSummary | None


_L = TypeVar("_L", bound=_Line)


def read_run(run: Path) -> RunFiles:
    """Read all files of `run`; `UserError` for the first that is missing or damaged."""
    folder = RunFolder(run)
    config_file = folder.config
    if not config_file.is_file():
        raise UserError(
            f"{config_file} is missing, so {run} is no run: make one with `salsa-dist train CONFIG`"
        )
    config = load_config(config_file)
    train, evaluate = (f"salsa-dist {verb} {config_file}" for verb in ("train", "evaluate"))

    told = _read_events(folder.events, train)
    # Every rank of a resumed evaluation may write an utterance again: the last line is the newest.
    newest: dict[tuple[Any, ...], Hypothesis] = {}
    for file in folder.transcripts():
        for line in _lines(file, transcripts.SCHEMA, evaluate):
            h = _parse(Hypothesis, *line, evaluate)
            newest[h.language, h.split, h.method, h.adapter, h.window_s, h.key] = h
    summary = folder.evaluation_summary
    return RunFiles(
        **vars(told),
        config=config,
        config_text=config_file.read_text(encoding="utf-8"),
        adapters=_adapters(run, config, train),
        hypotheses=[newest[place] for place in sorted(newest, key=_order)],
        evaluation=(
            _parse(
                EvaluationSummary,
                _json(_text(summary, evaluate), str(summary), evaluate),
                str(summary),
                evaluate,
            )
            if summary.exists()
            else None
        ),
    )


def _order(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whichever rank decoded a clip, and in which try, its transcript has the same place."""
    language, split, method, adapter, window_s, key = place
    return language, split, method, adapter or "", window_s, key


def _read_events(file: Path, command: str) -> Events:
    start: Start | None = None
    starts = 0
    placement: Placement | None = None
    data: dict[str, Data] = {}
    bad: dict[tuple[str, str], BadSample] = {}
    steps: dict[int, Step] = {}
    for tree, where in _lines(file, events.SCHEMA, command):
        event = _parse(Event, tree, where, command).event
        if event == "start":
            start, starts = _parse(Start, tree, where, command), starts + 1
        elif event == "placement":
            placement = _parse(Placement, tree, where, command)
        elif event == "data":
            found = _parse(Data, tree, where, command)
            data[found.adapter] = found
        elif event == "bad_samples":
            for sample in _parse(BadSamples, tree, where, command).samples:
                bad.setdefault((sample.shard, sample.key), sample)
        elif event == "step":
            step = _parse(Step, tree, where, command)
            # Adapters that were trained one after another have a step of the same number each.
            before = steps.get(step.step)
            if before is not None and not before.adapters.keys() & step.adapters.keys():
                step = step.model_copy(
                    update={
                        "adapters": {**before.adapters, **step.adapters},
                        "seconds": before.seconds + step.seconds,
                        "clips": before.clips + step.clips,
                    }
                )
            steps[step.step] = step
    if start is None:
        raise _damaged(str(file), "it holds no start event", command)
    return Events(
        start=start,
        starts=starts,
        placement=placement,
        data=list(data.values()),
        bad_samples=list(bad.values()),
        steps=[steps[number] for number in sorted(steps)],
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
        vectors={},
    )


def _read_adapter(run: Path, name: str, command: str) -> AdapterFile:
    file = RunFolder(run).adapter(name) / VECTORS
    if not file.is_file():
        raise UserError(f"{file} is missing: the run has not ended; go on with `{command}`")
    try:
        vectors, metadata = adapter_file.unpack(adapter_file.read(file), file)
    except UserError as e:
        raise UserError(f"{e}; `{command}` makes it again") from e
    if "language" not in metadata:
        raise _damaged(str(file), "its metadata has no language", command)
    return AdapterFile(
        name=name,
        language=metadata["language"],
        rule=metadata["rule"],
        sites=metadata["sites"],
        file=str(file.relative_to(run)),
        file_bytes=file.stat().st_size,
        trained_numbers=sum(v.numel() for v in vectors.values()),
        vectors={site: v.numpy() for site, v in vectors.items()},
    )


def _lines(file: Path, schema: str, command: str) -> Iterator[tuple[Any, str]]:
    """Each line as a tree of `schema`, with its place for errors."""
    # By "\n" alone: a text may hold other characters that str.splitlines() takes for line ends.
    for number, line in enumerate(_text(file, command).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            tree = _json(line, where, command)
            if not isinstance(tree, dict) or "schema" not in tree:
                raise _damaged(where, "no JSON object with a schema", command)
            if tree.get("schema") != schema:
                raise UserError(f"{where} is {of_another_release(tree.get('schema'), schema)}")
            yield tree, where


def _text(file: Path, command: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is missing: make it with `{command}`") from None
    except (OSError, UnicodeDecodeError) as e:
        raise _damaged(str(file), str(e), command) from e


def _json(text: str, where: str, command: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise _damaged(where, f"no JSON: {e}", command) from e


def _parse(model: type[_L], tree: Any, where: str, command: str) -> _L:
    try:
        return model.model_validate(tree)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(where, f"{place}: {first['msg']}".removeprefix(": "), command) from e


def _damaged(where: str, what: str, command: str) -> UserError:
    return UserError(f"{where} is damaged ({' '.join(what.split())}): make it again with `{command}`")
