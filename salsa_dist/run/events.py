"""`events.jsonl`: the events of a run, one JSON object per line, for reports and other programs.

    {"schema": "salsa-dist/events/1", "event": "step", "time": 1764000000.0, "step": 12, …}

Events: start, preflight, data, dev_clips, placement, step, dev, dev_loss, rung, bad_samples,
checkpoint, skipped, out_of_memory, end. A run that was stopped and went on has a second `start`, and
may repeat the steps after its last checkpoint: the last line of a step counts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from salsa_dist import jsonl
from salsa_dist.errors import UserError
from salsa_dist.json_file import Damaged, Record, parsed
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/events/1"


class Events:
    """Writes the events of a run; on ranks other than 0 it writes nothing."""

    def __init__(self, run: Path, enabled: bool) -> None:
        self._file = jsonl.append(RunFolder(run).events) if enabled else None

    def write(self, event: str, **fields: Any) -> None:
        if self._file is not None:
            line = {"schema": SCHEMA, "event": event, "time": round(time.time(), 3), **fields}
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError as e:
                raise UserError(
                    f"{self._file.name} can't be written: {e.strerror}; the last checkpoint is whole, "
                    "launch again once there is room"
                ) from e

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # said by `write`; what did not fit is tried once more here
                self._file.close()


def read(run: Path) -> list[dict[str, Any]]:
    """The events of a run so far, without an incomplete last line; empty if the run has not started.

    Raises:
        UserError: a line is damaged, or of another schema.
    """
    folder = RunFolder(run)
    if not folder.events.is_file():
        return []
    return list(jsonl.read(folder.events, SCHEMA, f"make it again with `{folder.command('train')}`"))


def read_forgiving(run: Path) -> list[dict[str, Any]]:
    """Like `read`, but skips damaged lines: the cost of a failed run is still needed."""
    try:
        text = RunFolder(run).events.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("schema") == SCHEMA:
            found.append(event)
    return found


def last_start(run: Path) -> dict[str, Any] | None:
    """The event of a run's last start; None if the run has not started."""
    return next((e for e in reversed(read(run)) if e["event"] == "start"), None)


def dev_loss_told(run: Path) -> bool:
    """Whether the adapters were measured on dev clips after the last step so far."""
    kinds = [e.get("event") for e in read_forgiving(run)]
    return next((kind for kind in reversed(kinds) if kind in ("step", "dev_loss")), "") == "dev_loss"


class _Event(Record):
    event: str


class Base(Record):
    name: str
    revision: str | None
    parameters: int


class Start(Record):
    base: Base
    environment: dict[str, str | int | float | bool | None]


class Placement(Record):
    """The measured placement; each number is the largest of all ranks."""

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


class Data(Record):
    adapter: str
    clips: int
    minutes: float | None = None
    """Of speech that it was trained on."""
    left_out: int


class BadSample(Record):
    kind: str
    shard: str
    key: str


class _BadSamples(Record):
    samples: list[BadSample]


class _DevClips(Record):
    left_out: list[BadSample]


class AdapterStep(Record):
    loss: float | None


class Store(Record):
    """Traffic of all ranks with the store that has the shards."""

    requests: float
    fetched_bytes: float
    cached_bytes: float
    retries: float
    waited_s: float


class Step(Record):
    step: int
    seconds: float
    clips: int
    audio_seconds: float | None = None
    padding: float | None = None
    """Share of the audio's frames that is padding to the longest clip of a pass."""
    data_wait: float | None = None
    """Share of the step's time for which ranks waited for clips, on average."""
    peak_memory: int | None = None
    """Most bytes that rank 0 has held so far: of tensors on a GPU, else of host memory."""
    tokens_per_second: float | None = None
    """Of the LLM or decoder, over all ranks, without padding."""
    mfu: float | None = None
    """Model FLOPs utilisation, where the device's peak is known: see training/speed.py."""
    adapters: dict[str, AdapterStep]
    store: Store | None = None


class Dev(Record):
    """Adapters on dev clips before a step, by name."""

    step: int
    dev_loss: dict[str, float]
    cer: dict[str, float] = Field({})
    wer: dict[str, float] = Field({})
    mer: dict[str, float] = Field({})
    """Error rates, where dev clips were decoded."""
    best: dict[str, int]
    """Steps that each had made when it was best."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A summary of a run's events."""

    start: Start
    starts: int
    """How often training was started: one, and one for each resume."""
    placement: Placement | None
    data: list[Data]
    bad_samples: list[BadSample]
    """Each once, however often it was sampled."""
    bad_dev_clips: list[BadSample]
    """Dev clips that were left out, each once."""
    steps: list[Step]
    """The last of each number."""
    dev: list[Dev]
    """In the order of steps, those of other adapters beside each other."""
    store: Store | None
    """Sums over all steps, repeated ones too; None where the shards lie in a folder."""


def history(run: Path) -> History:
    """Read the events of `run`.

    Raises:
        UserError: there are none, or a line is damaged, or of another schema.
    """
    folder = RunFolder(run)
    file, command = folder.events, folder.command("train")
    advice = f"make it again with `{command}`"
    start: Start | None = None
    starts = 0
    placement: Placement | None = None
    data: dict[str, Data] = {}
    bad: dict[tuple[str, str], BadSample] = {}
    bad_dev: dict[tuple[str, str], BadSample] = {}
    steps: dict[int, Step] = {}
    dev: dict[tuple[int, frozenset[str]], Dev] = {}
    had: Counter[str] | None = None
    try:
        for where, tree in jsonl.lines(file, SCHEMA, advice, whole=True):
            event = parsed(_Event, tree, where, advice).event
            if event == "start":
                start, starts = parsed(Start, tree, where, advice), starts + 1
            elif event == "placement":
                placement = parsed(Placement, tree, where, advice)
            elif event == "data":
                found = parsed(Data, tree, where, advice)
                data[found.adapter] = found
            elif event == "bad_samples":
                for sample in parsed(_BadSamples, tree, where, advice).samples:
                    bad.setdefault((sample.shard, sample.key), sample)
            elif event == "dev_clips":
                for clip in parsed(_DevClips, tree, where, advice).left_out:
                    bad_dev[clip.shard, clip.key] = clip
            elif event == "dev":
                measured = parsed(Dev, tree, where, advice)
                dev[measured.step, frozenset(measured.best)] = measured
            elif event == "step":
                step = parsed(Step, tree, where, advice)
                if step.store is not None:
                    had = had or Counter()
                    had.update(step.store.model_dump())
                steps[step.step] = _beside(steps.get(step.step), step)
    except FileNotFoundError as e:
        raise UserError(f"{file} is missing: make it with `{command}`") from e
    if start is None:
        raise Damaged(f"{file} is damaged (it holds no start event): {advice}")
    return History(
        start=start,
        starts=starts,
        placement=placement,
        data=list(data.values()),
        bad_samples=list(bad.values()),
        bad_dev_clips=list(bad_dev.values()),
        steps=[steps[number] for number in sorted(steps)],
        dev=sorted(dev.values(), key=lambda measured: measured.step),
        store=None if had is None else Store(**had),
    )


def _beside(before: Step | None, step: Step) -> Step:
    """`step` together with the same step of other adapters, which are trained one after another."""
    if before is None or before.adapters.keys() & step.adapters.keys():
        return step
    seconds = before.seconds + step.seconds

    def mean(name: str) -> float | None:
        own, other = getattr(before, name), getattr(step, name)
        if own is None or other is None:
            return None
        summed = before.seconds * own + step.seconds * other
        return summed / seconds if seconds else 0.0

    audio = (before.audio_seconds, step.audio_seconds)
    return step.model_copy(
        update={
            "adapters": {**before.adapters, **step.adapters},
            "seconds": seconds,
            "clips": before.clips + step.clips,
            "audio_seconds": None if None in audio else sum(s for s in audio if s is not None),
            "peak_memory": max(before.peak_memory or 0, step.peak_memory or 0) or None,
            **{name: mean(name) for name in ("data_wait", "tokens_per_second", "mfu")},
        }
    )
