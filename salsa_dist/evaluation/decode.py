"""Transcribing held-out clips, zero-shot and steered, and keeping every transcript.

    RUN/evaluation/
    ├── settings.json         what the transcripts below depend on; others are thrown away
    ├── window30-rank0.jsonl  one transcript a line, as it comes
    └── summary.json          seconds, clips a second

    batches  a·zero-shot a·bg b·zero-shot b·bg │ c·zero-shot … │ …      long clips first, dealt to ranks
    thread        ready                          reading, features
    this rank     decoding

A batch mixes adapters and languages freely: each clip carries its own row of the bank, and -1 is the
base as it is. A clip's rows are in one batch, so that it is read once and its way through the encoder
is shared as far as it goes. An evaluation that was stopped goes on with the clips that are still
missing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist import jsonl
from salsa_dist.baselines import tuned_file
from salsa_dist.baselines.in_context import InContext
from salsa_dist.baselines.tuned import installed
from salsa_dist.config import (
    BiasMethod,
    Config,
    InContextMethod,
    LoraMethod,
    PlacementConfig,
    ZeroShotMethod,
)
from salsa_dist.data.audio import read_audio
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.reading import first_clips, read_clip
from salsa_dist.data.shards import TEXT_FIELDS
from salsa_dist.data.subset import first_entries
from salsa_dist.errors import UserError
from salsa_dist.evaluation.kept import keep_only
from salsa_dist.evaluation.transcripts import BARE, ZERO_SHOT
from salsa_dist.placement.choose import choose
from salsa_dist.placement.frozen_base import FrozenBase, Prompts
from salsa_dist.placement.loading import load_base, silent
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.run import events
from salsa_dist.run.agreement import agree, base_facts, settings_facts
from salsa_dist.run.lock import held_for_all
from salsa_dist.run.start import open_run, write_start
from salsa_dist.run.watchdog import Watchdog
from salsa_dist.speech_llms import long_audio
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.load import SpeechLLM, revision_of
from salsa_dist.steering.bank import Bank
from salsa_dist.steering.sites import site_modules
from salsa_dist.steering.vectors import SteeringVectors, bank_of
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/hypotheses/1"
_BARE = -2  # row of the base with no adapters beside it, not even ones that are off
# Facts of a sample that a transcript's line has elsewhere, or that say nothing of the speech.
_NO_FIELDS = {*TEXT_FIELDS, "language", "seconds", "licence"}


@dataclass(frozen=True)
class _Item:
    """One clip to transcribe with one adapter, or with none (row -1, or _BARE)."""

    shard: Shard
    entry: Entry
    language: str
    row: int


def transcribe(
    base: SpeechLLM,
    files: Sequence[str | Path],
    language: str | Sequence[str],
    vectors: SteeringVectors | Sequence[SteeringVectors | None] | None = None,
    batch: int = 8,
    max_new_tokens: int = 128,
    *,
    force: bool = False,
) -> list[str]:
    """Transcripts of audio files, in their order; files of one pass may have adapters of their own.

    Args:
        base: from `load_speech_llm`.
        files: wav, flac, ogg or mp3 at any rate; one longer than the base's window is cut into pieces
            where it is quiet.
        language: their language's code, or one a file.
        vectors: an adapter to steer with, or one a file; None: the base as it is, or as it is already
            steered.
        batch: clips, or pieces of long ones, of one pass.
        max_new_tokens: limit of a transcript, or of a piece's.
        force: take adapters of another base too, as long as their sites and widths are there.
    """
    languages = [language] * len(files) if isinstance(language, str) else list(language)
    chosen: list[SteeringVectors | None]
    if vectors is None or isinstance(vectors, SteeringVectors):
        chosen = [vectors] * len(files)
    else:
        chosen = list(vectors)
    for what, given in (("languages", languages), ("adapters", chosen)):
        if len(given) != len(files):
            raise UserError(f"{len(given)} {what} for {len(files)} files: give one, or one a file")
    adapters = list({id(v): v for v in chosen if v is not None}.values())
    for adapter in adapters:
        adapter.check(base, force)
    row = {id(v): i for i, v in enumerate(adapters)}
    clips = [
        Clip(str(f), read_audio(f, SAMPLE_RATE), "", of, row.get(id(v), -1))
        for f, of, v in zip(files, languages, chosen, strict=True)
    ]
    weight = next(base.model.parameters())
    bank = bank_of(adapters, weight.device)
    cut = [long_audio.pieces(clip, base.window_s) for clip in clips]
    parts = [piece for pieces in cut for piece in pieces]
    transcripts: list[Transcript] = []
    with bank.attached(site_modules(base.model, base.layers)):
        for i in range(0, len(parts), batch):
            prompts = base.family.prompt_batch(parts[i : i + batch]).to(weight.device, weight.dtype)
            with bank.rows(prompts.rows):
                transcripts += base.family.generate(
                    base.model, prompts, max_new_tokens, stay=lambda kept: bank.keep("llm", kept)
                )
    of_piece = iter(transcripts)
    return [
        long_audio.joined(list(islice(of_piece, len(pieces))), clip.language).text
        for clip, pieces in zip(clips, cut, strict=True)
    ]


def evaluate(config: Config) -> Path:
    """Transcribe the evaluation split with the run's adapters and without, at each window.

    A run of another method is decoded with what that method trained, or with its examples.

    Returns the folder with the transcripts; `build_report` scores them.
    """
    folder = config.run / "evaluation"
    hang_after_s = config.training.hang_after_s
    with join(hang_after_s) as ranks, ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.run, ranks.rank, ranks.world_size, hang_after_s))
        index = ShardIndex.load(config.data.shards)
        watchdog.at(None, "comparing settings")
        agree(ranks, settings_facts(config, index.hash))
        digests = {a.name: _digest(config, a.name) for a in config.adapters}
        stack.enter_context(held_for_all(config.run, ranks))
        revision = revision_of(config.base.name, config.base.revision)
        if ranks.is_first and (differ := keep_only(config, revision, index.hash, digests)):
            print(f"transcribing anew: other {', '.join(differ)}", flush=True)
        dist.barrier()
        watchdog.at(None, "choosing a placement", reads=True)
        placed = choose(config, ranks, training=False)
        if ranks.is_first:
            print(*placed.lines, sep="\n", flush=True)
        started, decoded = time.monotonic(), 0
        for window in config.evaluation.windows_s:
            for rows in _passes(config):
                watchdog.at(None, "loading the base", reads=True)
                with _ready(config, placed.placement, window, rows, index, ranks, watchdog) as decoder:
                    for own in _apart(config, rows):
                        decoded += _decode(config, folder, index, own, decoder, ranks, watchdog)
        if ranks.is_first:
            _summarise(folder, config, time.monotonic() - started, decoded, ranks)
    return folder


def _passes(config: Config) -> list[list[int]]:
    """The rows that are decoded with one load of the base; -1 is the base as it is.

    Vectors share a load. What trains the base's own weights, or puts examples before a clip, does not.
    """
    if config.method.kind == "zero-shot":
        return [[-1]]
    zero_shot = [-1] if config.evaluation.zero_shot else []
    adapters = list(range(len(config.adapters)))
    if config.method.kind in ("salsa", "mean-difference"):
        bare = [[_BARE]] if zero_shot and config.evaluation.forgetting else []
        return [*bare, zero_shot + adapters]
    return [rows for rows in [zero_shot, *([row] for row in adapters)] if rows]


def _apart(config: Config, rows: Sequence[int]) -> list[list[int]]:
    """`rows` in groups that share no batch.

    Where the base is decoded with adapters off and without adapters, both must be in the same
    batches: others round otherwise.
    """
    steered = [row for row in rows if row >= 0]
    if config.evaluation.forgetting and -1 in rows and steered:
        return [[-1], steered]
    return [list(rows)]


@dataclass(frozen=True)
class _Decoder:
    """What transcribes the clips of a pass.

    Attributes:
        window_s: longest audio in seconds.
        prepare: what a thread can do for clips while others are decoded.
        answer: the transcripts of what was prepared; all ranks call it equally often.
    """

    window_s: float
    prepare: Callable[[Sequence[Clip]], Any]
    answer: Callable[[Any], list[Transcript]]


@contextmanager
def _ready(
    config: Config,
    placement: PlacementConfig,
    window: float | None,
    rows: Sequence[int],
    index: ShardIndex,
    ranks: Ranks,
    watchdog: Watchdog,
) -> Iterator[_Decoder]:
    """The base with what a pass adds to it."""
    method = config.method
    settings = config.base.model_copy(update={"window_s": window})
    speech_llm = load_base(settings, ranks, placement, silent)
    bank = Bank([], {}, ranks.device)
    examples: InContext | None = None
    if max(rows) >= 0:
        whole = (placement.kind, placement.offload) == ("replicate", "none")
        if method.kind not in ("salsa", "mean-difference") and not whole:
            raise UserError(
                f"method {method.kind}: set evaluation.placement.kind to replicate and offload to none"
            )
        adapter = config.adapter_settings()[rows[-1]]
        if isinstance(method, LoraMethod | BiasMethod):
            weights = installed(config, speech_llm, adapter)
            tuned_file.restore(config.run / "adapters" / adapter.name, weights, speech_llm.revision)
        elif isinstance(method, InContextMethod):
            pool = first_clips(
                config.data.shards, index, adapter.language, method.pool, speech_llm.window_s
            )
            examples = InContext(
                *(method, speech_llm, pool, adapter.seed),
                lambda: watchdog.at(None, "hearing the examples"),
            )
        else:
            bank = _bank(config, speech_llm, ranks)
    if isinstance(method, InContextMethod | ZeroShotMethod) and not (config.run / events.NAME).exists():
        # Nothing was trained, so nothing has begun the run yet.
        begun = events.Events(open_run(config, ranks), ranks.is_first)
        write_start(begun, ranks, speech_llm, 0)
        begun.close()
    agree(ranks, base_facts(speech_llm, bank, ranks, placement))
    base = FrozenBase(speech_llm, bank, ranks, placement)
    held = base.as_loaded()
    if ranks.is_first:
        print(held, flush=True)
    limit, decoding = config.evaluation.max_new_tokens, config.evaluation.decoding.model_dump()

    def solved(clips: Sequence[Clip]) -> list[Transcript]:
        assert examples is not None
        return [examples.transcribe(clip, limit, decoding) for clip in clips]

    def answer(prompts: Prompts) -> list[Transcript]:
        return base.answer(prompts, limit, decoding)

    window_s = base.family.window_s
    try:
        yield _Decoder(window_s, list, solved) if examples else _Decoder(window_s, base.prompts, answer)
    finally:
        base.close()


def _decode(
    config: Config,
    folder: Path,
    index: ShardIndex,
    rows: Sequence[int],
    decoder: _Decoder,
    ranks: Ranks,
    watchdog: Watchdog,
) -> int:
    """Transcribe what is still missing of `rows`; returns how many clips, over all ranks."""
    window = decoder.window_s
    done = {
        (line["key"], line["adapter"], line["method"] == BARE)
        for path in sorted(folder.glob("*.jsonl"))
        for line in jsonl.read(path, SCHEMA)
        if line["window_s"] == window
    }
    names = [a.name for a in config.adapters]
    items = [
        item
        for item in _items(config, index, rows, window)
        if (item.entry.key, names[item.row] if item.row >= 0 else None, item.row == _BARE) not in done
    ]
    # Nobody may write before everybody has read what is there; and a file system that shows one rank
    # less than another would have them make unequal numbers of calls.
    agree(ranks, {f"clips left at the {window:g} s window": len(items)})
    # Long clips first: they say most, so those of a batch end together, and the last batches are short.
    items.sort(key=lambda item: (-item.entry.seconds, item.language, item.entry.key, item.row))
    batches = _batched(items, config.evaluation.batch, window)
    mine = batches[ranks.rank :: ranks.world_size]
    # All ranks make the same number of calls: under ZeRO-3 each is a collective.
    calls = -(-len(batches) // ranks.world_size)
    mine += [[]] * (calls - len(mine))
    said, begun = time.monotonic(), 0

    def prepared(batch: Sequence[_Item]) -> tuple[list[Clip], Any]:
        once = {(item.shard.path, item.entry.key): item for item in batch}
        read = {at: read_clip(config.data.shards, i.shard, i.entry) for at, i in once.items()}
        clips = [replace(read[i.shard.path, i.entry.key], row=max(i.row, -1)) for i in batch]
        return clips, decoder.prepare(clips)

    with (
        jsonl.append(folder / f"window{window:g}-rank{ranks.rank}.jsonl") as out,
        ThreadPoolExecutor(1) as reader,
    ):
        coming = [reader.submit(prepared, batch) for batch in mine[:1]]
        for call, batch in enumerate(mine):
            watchdog.at(call, f"transcribing at the {window:g} s window")
            clips, prompts = coming.pop().result()
            coming = [reader.submit(prepared, following) for following in mine[call + 1 : call + 2]]
            transcripts = decoder.answer(prompts)
            for item, clip, transcript in zip(batch, clips, transcripts, strict=True):
                line = _line(config, item, clip, transcript, names, window)
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            begun += sum(map(len, batches[call * ranks.world_size : (call + 1) * ranks.world_size]))
            if ranks.is_first and (time.monotonic() - said >= 5 or call + 1 == calls):
                said = time.monotonic()
                print(f"transcribed {begun}/{len(items)} at the {window:g} s window", flush=True)
        watchdog.at(calls, "waiting for the other ranks")
        dist.barrier()
    return len(items)


def _batched(items: Sequence[_Item], size: int, window: float) -> list[list[_Item]]:
    """`items` in order, as many a batch as make `size` clips or pieces of clips; always one.

    What is to be transcribed of one clip is parted only where it is too much for a batch.
    """
    batches: list[list[_Item]] = []
    room = 0
    for _, group in groupby(items, key=lambda item: (item.language, item.entry.key)):
        of_clip = list(group)
        pieces = long_audio.most_pieces(of_clip[0].entry.seconds, window)
        if room < pieces * len(of_clip) <= size:
            room = 0
        for item in of_clip:
            if not batches or pieces > room:
                batches.append([])
                room = size
            batches[-1].append(item)
            room -= pieces
    return batches


def _items(config: Config, index: ShardIndex, rows: Sequence[int], window: float) -> Iterator[_Item]:
    split, most = config.evaluation.split, config.evaluation.clips
    others: Sequence[str] = ()
    if isinstance(config.evaluation.forgetting, list):
        others = config.evaluation.forgetting
    elif config.evaluation.forgetting:
        others = sorted({shard.language for shard in index.shards if shard.split == split})
    languages = dict.fromkeys(language for a in config.adapters for language in a.languages)
    longest_s = window if most is not None else math.inf
    for language in dict.fromkeys([*languages, *others]):
        own = [
            r for r in rows if r < 0 or language in others or language in config.adapters[r].languages
        ]
        for shard, entry in first_entries(index.select(split, language), most, longest_s):
            yield from (_Item(shard, entry, language, row) for row in own)


def _line(
    config: Config,
    item: _Item,
    clip: Clip,
    transcript: Transcript,
    names: Sequence[str],
    window: float,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "key": clip.key,
        "language": clip.language,
        "split": config.evaluation.split,
        "method": _method(config, item.row),
        "adapter": names[item.row] if item.row >= 0 else None,
        "window_s": window,
        "seconds": round(clip.seconds, 3),
        "reference": clip.text,
        "hypothesis": transcript.text,
        "finished": transcript.finished,
        "fields": _fields(clip.facts),
    }


def _fields(facts: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What results may be told by; what a recipe knew beyond the usual lies in `extra`."""
    extra = facts.get("extra")
    every = {**facts, **(extra if isinstance(extra, dict) else {})}
    return {
        name: value
        for name, value in every.items()
        if name not in _NO_FIELDS and isinstance(value, str | int | float)
    }


def _method(config: Config, row: int) -> str:
    if row >= 0:
        return config.method.kind
    return BARE if row == _BARE else ZERO_SHOT


def _adapter(config: Config, name: str) -> SteeringVectors:
    path = config.run / "adapters" / name
    if not path.is_dir():
        raise UserError(f"no adapter at {path}: train it first (salsa-dist train CONFIG)")
    return SteeringVectors.load(path)


def _bank(config: Config, base: SpeechLLM, ranks: Ranks) -> Bank:
    """The run's adapters as a bank."""
    adapters = [_adapter(config, a.name) for a in config.adapters]
    for adapter in adapters:
        adapter.check(base)
    return bank_of(adapters, ranks.device)


def _digest(config: Config, name: str) -> str:
    """What an adapter's transcripts depend on, beside the base and the clips."""
    method = config.method
    if isinstance(method, ZeroShotMethod):
        return ""
    if isinstance(method, LoraMethod | BiasMethod):
        return tuned_file.digest(config.run / "adapters" / name)
    if isinstance(method, InContextMethod):
        return method.model_dump_json()
    return _adapter(config, name).digest()


def _summarise(folder: Path, config: Config, seconds: float, clips: int, ranks: Ranks) -> None:
    """Add this call's work to that of the calls before it."""
    cpu = ranks.device.type == "cpu"
    device_s = seconds * ranks.world_size * (torch.get_num_threads() if cpu else 1)
    path = folder / "summary.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    seconds += before.get("seconds", 0.0) if clips else 0.0
    device_s += 3600 * before.get("device_hours", 0.0) if clips else 0.0
    clips += before.get("clips", 0)
    if path.is_file() and clips == before.get("clips"):
        return
    summary = {
        "seconds": round(seconds, 1),
        "clips": clips,
        "clips_per_second": round(clips / seconds, 3),
        "device": "cpu" if cpu else torch.cuda.get_device_name(ranks.device),
        "device_hours": round(device_s / 3600, 6),
        "max_new_tokens": config.evaluation.max_new_tokens,
        "batch": config.evaluation.batch,
    }
    replace_file(path, json.dumps(summary, indent=2))
