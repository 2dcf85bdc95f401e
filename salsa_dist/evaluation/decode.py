"""Transcribing held-out clips, zero-shot and steered, and keeping every transcript.

    RUN/evaluation/
    ├── settings.json         what the transcripts below depend on; others are thrown away
    ├── window30-rank0.jsonl  one transcript a line, as it comes
    └── summary.json          seconds, clips a second

A batch mixes adapters and languages freely: each clip carries its own row of the bank, and -1 is the
base as it is. An evaluation that was stopped goes on with the clips that are still missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from salsa_dist import jsonl
from salsa_dist.config import Config
from salsa_dist.data.audio import read_audio
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.shards import read_range, read_sample
from salsa_dist.errors import UserError
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import Bank
from salsa_dist.steering.sites import site_modules
from salsa_dist.steering.vectors import SteeringVectors, bank_of

SCHEMA = "salsa-dist/hypotheses/1"


@dataclass(frozen=True)
class _Item:
    """One clip to transcribe with one adapter, or with none (row -1)."""

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
        files: wav, flac, ogg or mp3 at any rate, each no longer than the base's window.
        language: their language's code, or one a file.
        vectors: an adapter to steer with, or one a file; None: the base as it is, or as it is already
            steered.
        batch: clips of one pass.
        max_new_tokens: limit of a transcript.
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
    texts: list[str] = []
    with bank.attached(site_modules(base.model, base.layers)):
        for i in range(0, len(clips), batch):
            prompts = base.family.prompt_batch(clips[i : i + batch]).to(weight.device, weight.dtype)
            with bank.rows(prompts.rows):
                transcripts = base.family.generate(base.model, prompts, max_new_tokens)
            texts += [transcript.text for transcript in transcripts]
    return texts


def evaluate(config: Config) -> Path:
    """Transcribe the evaluation split with the run's adapters and without, at each window.

    Returns the folder with the transcripts; `build_report` scores them.
    """
    folder = config.run / "evaluation"
    with join() as ranks:
        index = ShardIndex.load(config.data.shards)
        adapters = [_adapter(config, a.name) for a in config.adapters]
        if ranks.is_first:
            _make_folder(folder, config, index, adapters)
        dist.barrier()
        started, decoded = time.monotonic(), 0
        for window in config.evaluation.windows_s:
            settings = {**config.base.model_dump(), "window_s": window}
            speech_llm = load_speech_llm(**settings, device=ranks.device)
            bank = _bank(adapters, speech_llm, ranks)
            base = FrozenBase(speech_llm, bank, ranks, config.evaluation.placement)
            decoded += _decode_window(config, folder, index, base, ranks)
            base.close()
        if ranks.is_first:
            _summarise(folder, config, time.monotonic() - started, decoded)
    return folder


def _decode_window(
    config: Config,
    folder: Path,
    index: ShardIndex,
    base: FrozenBase,
    ranks: Ranks,
) -> int:
    """Transcribe what is still missing at one window; returns how many clips, over all ranks."""
    window = base.family.window_s
    done = {
        (line["key"], line["adapter"])
        for path in sorted(folder.glob("*.jsonl"))
        for line in jsonl.read(path, SCHEMA)
        if line["window_s"] == window
    }
    # Nobody may write before everybody has read what is there.
    dist.barrier()
    names = [a.name for a in config.adapters]
    items = [
        item
        for item in _items(config, index, window)
        if (item.entry.key, names[item.row] if item.row >= 0 else None) not in done
    ]
    # Long clips first: those of a batch end together, and the last batches are short.
    items.sort(key=lambda item: (-item.entry.seconds, item.entry.key, item.row))
    size = config.evaluation.batch
    decoding = config.evaluation.decoding.model_dump()
    batches = [items[i : i + size] for i in range(0, len(items), size)]
    mine = batches[ranks.rank :: ranks.world_size]
    # All ranks make the same number of calls: under ZeRO-3 each is a collective.
    calls = -(-len(batches) // ranks.world_size)
    said = time.monotonic()
    with jsonl.append(folder / f"window{window:g}-rank{ranks.rank}.jsonl") as out:
        for call in range(calls):
            batch = mine[call] if call < len(mine) else []
            clips = [_read(config.data.shards, item) for item in batch]
            transcripts = base.generate(clips, config.evaluation.max_new_tokens, decoding)
            for item, clip, transcript in zip(batch, clips, transcripts, strict=True):
                line = _line(config, item, clip, transcript, names, window)
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            if ranks.is_first and (time.monotonic() - said >= 5 or call + 1 == calls):
                said = time.monotonic()
                count = min(len(items), (call + 1) * size * ranks.world_size)
                print(f"transcribed {count}/{len(items)} at the {window:g} s window", flush=True)
    return len(items)


def _items(config: Config, index: ShardIndex, window: float) -> Iterator[_Item]:
    languages = dict.fromkeys(a.language for a in config.adapters)
    for language in languages:
        for shard in index.select(config.evaluation.split, language):
            for entry in shard.entries:
                if entry.seconds > window:
                    raise UserError(
                        f"clip {entry.key} of {shard.path} lasts {entry.seconds:.1f} s, longer than "
                        f"the {window:g} s window: take it out of evaluation.windows_s"
                    )
                if config.evaluation.zero_shot:
                    yield _Item(shard, entry, language, -1)
                for row, adapter in enumerate(config.adapters):
                    if adapter.language == language:
                        yield _Item(shard, entry, language, row)


def _read(folder: Path, item: _Item) -> Clip:
    path = folder / item.shard.path
    audio, facts = read_sample(read_range(path, item.entry), path, item.entry.key)
    return Clip(item.entry.key, audio, str(facts["text"]), item.language, item.row)


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
        "method": "salsa" if item.row >= 0 else "zero-shot",
        "adapter": names[item.row] if item.row >= 0 else None,
        "window_s": window,
        "seconds": round(clip.seconds, 3),
        "reference": clip.text,
        "hypothesis": transcript.text,
        "finished": transcript.finished,
    }


def _adapter(config: Config, name: str) -> SteeringVectors:
    path = config.run / "adapters" / name
    if not path.is_dir():
        raise UserError(f"no adapter at {path}: train it first (salsa-dist train CONFIG)")
    return SteeringVectors.load(path)


def _bank(adapters: Sequence[SteeringVectors], base: SpeechLLM, ranks: Ranks) -> Bank:
    """The run's trained adapters as a bank."""
    for adapter in adapters:
        adapter.check(base)
    return bank_of(adapters, ranks.device)


def _make_folder(
    folder: Path, config: Config, index: ShardIndex, adapters: Sequence[SteeringVectors]
) -> None:
    """Keep earlier transcripts only if all that they depend on is the same."""
    settings = {
        "schema": SCHEMA,
        "base": config.base.model_dump(mode="json"),
        "shards": index.hash,
        "split": config.evaluation.split,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "decoding": config.evaluation.decoding.model_dump(),
        "adapters": {c.name: a.digest() for c, a in zip(config.adapters, adapters, strict=True)},
    }
    path = folder / "settings.json"
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != settings:
        for old in folder.glob("*.json*"):
            old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _summarise(folder: Path, config: Config, seconds: float, clips: int) -> None:
    """Add this call's work to that of the calls before it."""
    path = folder / "summary.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    seconds += before.get("seconds", 0.0) if clips else 0.0
    clips += before.get("clips", 0)
    if path.is_file() and clips == before.get("clips"):
        return
    summary = {
        "seconds": round(seconds, 1),
        "clips": clips,
        "clips_per_second": round(clips / seconds, 3),
        "max_new_tokens": config.evaluation.max_new_tokens,
        "batch": config.evaluation.batch,
    }
    path.write_text(json.dumps(summary, indent=2), encoding="utf-8")
