"""Transcribe held-out clips, zero-shot and steered, and store every transcript.

    RUN/evaluation/
    ├── settings.json         what the transcripts below depend on; others are thrown away
    ├── window30-rank0.jsonl  one transcript per line, as it comes
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist import jsonl
from salsa_dist.config import Config
from salsa_dist.data.clip import Clip
from salsa_dist.data.reading import read_clip
from salsa_dist.data.share import share_of
from salsa_dist.evaluation import summary, transcripts
from salsa_dist.evaluation.items import BARE_ROW, Item, batched, items_of
from salsa_dist.evaluation.kept import keep_only
from salsa_dist.evaluation.scales import other_scales, scaled
from salsa_dist.evaluation.summary import EvaluationSummary
from salsa_dist.evaluation.transcripts import BARE, SCHEMA, ZERO_SHOT
from salsa_dist.methods.base import Attached, Method
from salsa_dist.methods.registry import method_of
from salsa_dist.placement import decode
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.measured import as_loaded
from salsa_dist.placement.ranks import Ranks
from salsa_dist.run.agreement import agree
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.steering.bank import Bank


def evaluate(config: Config) -> Path:
    """Transcribe the evaluation split with the run's adapters and without, at each window.

    A run of another method is decoded with what that method trained, or with its examples.

    Returns the folder with the transcripts; `build_report` scores them. Earlier transcripts of other
    settings are there until the first of these can be made.

    >>> from salsa_dist import load_config
    >>> evaluate(load_config("config.yaml", ["method.kind=zero-shot"])).name
    'evaluation'
    """
    method = method_of(config)
    digests = {a.name: method.digest(a.name) for a in config.adapters}
    facts = {f"adapter {name}": digest for name, digest in digests.items()}
    with Session.start(config, training=False, facts=facts) as session:
        started, decoded = time.monotonic(), 0
        for window in config.evaluation.windows_s:
            for rows in _passes(config, method):
                with _ready(session, method, window, rows) as decoder:
                    _keep_only(session, decoder.revision, digests)
                    for own in _apart(config, rows):
                        decoded += _decode(session, own, decoder)
                    for scale in other_scales(config) if max(rows) >= 0 else ():
                        with scaled(decoder.bank, scale):
                            own = [row for row in rows if row >= 0]
                            decoded += _decode(session, own, decoder, scale)
                del decoder  # it holds the base, and the next one is about to be loaded
        if session.ranks.is_first:
            _summarise(config, time.monotonic() - started, decoded, session.ranks)
        session.end(None)
    return RunFolder(config.run).evaluation


def _passes(config: Config, method: Method) -> list[list[int]]:
    """The rows that are decoded with one load of the base; -1 is zero-shot.

    Vectors share a load. What trains the base's own weights, or puts examples before a clip, does not.
    """
    groups = method.together()
    if not groups:
        return [[-1]]
    zero_shot = [-1] if config.evaluation.zero_shot else []
    if config.method.steers:
        bare = [[BARE_ROW]] if zero_shot and config.evaluation.forgetting else []
        return [*bare, zero_shot + groups[0]]
    return [rows for rows in [zero_shot, *groups] if rows]


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
    """Transcribes the clips of a pass.

    Attributes:
        revision: of the base.
        bank: the steering vectors on it.
        window_s: longest audio in seconds.
        prepare: what a thread can do for clips while others are decoded.
        answer: the transcripts of what was prepared; all ranks call it equally often.
        apart: languages with other numbers share no batch.
    """

    revision: str
    bank: Bank
    window_s: float
    prepare: Callable[[Sequence[Clip]], Any]
    answer: Callable[[Any], list[Transcript]]
    apart: Callable[[str], int]


@contextmanager
def _ready(
    session: Session, method: Method, window: float | None, rows: Sequence[int]
) -> Iterator[_Decoder]:
    """The base with the adapters of a pass, after all checks."""
    config, ranks = session.config, session.ranks
    speech_llm = session.load_base(config.base.model_copy(update={"window_s": window}))
    with ExitStack() as stack:
        attached = Attached(Bank([], {}, ranks.device))
        if max(rows) >= 0:
            attached = stack.enter_context(method.attached(session, speech_llm, rows[-1]))
        session.agree(speech_llm, attached.bank)
        if not RunFolder(config.run).events.exists():
            session.begin(speech_llm)  # nothing was trained here, so nothing has begun the run yet
        base = stack.enter_context(
            FrozenBase(speech_llm, attached.bank, ranks, session.placed.placement)
        )
        session.say(as_loaded(base))
        limit, decoding = config.evaluation.max_new_tokens, config.evaluation.decoding.model_dump()
        family, one = base.family, attached.transcribe
        prepare: Callable[[Sequence[Clip]], Any] = list
        if one is None:
            prepare = partial(decode.prompts_of, base)

        def answer(made: Any) -> list[Transcript]:
            if one is None:
                return decode.answer(base, made, limit, decoding)
            return [one(clip, limit, decoding) for clip in made]

        made_of = speech_llm.revision, attached.bank, family.window_s
        yield _Decoder(*made_of, prepare, answer, family.apart)


def _decode(session: Session, rows: Sequence[int], decoder: _Decoder, scale: float = 1.0) -> int:
    """Transcribe the missing clips of `rows` at a scale. Returns their number, over all ranks."""
    config, ranks, window = session.config, session.ranks, decoder.window_s
    done = {
        (line["key"], line["adapter"], line["method"] == BARE)
        for line in transcripts.read(config.run)
        if (line["window_s"], line.get("scale", 1.0)) == (window, scale)
    }
    names = [a.name for a in config.adapters]
    items = [
        item
        for item in items_of(config, session.index, rows, window)
        if (item.entry.key, names[item.row] if item.row >= 0 else None, item.row == BARE_ROW)
        not in done
    ]
    # Nobody may write before everybody has read what is there; and a file system that shows one rank
    # less than another would have them make unequal numbers of calls.
    agree(ranks, {f"clips left at the {window:g} s window": len(items)})
    # Long clips first: they say most, so those of a batch end together, and the last batches are short.
    items.sort(
        key=lambda item: (
            decoder.apart(item.language),
            -item.entry.seconds,
            item.language,
            item.entry.key,
            item.row,
        )
    )
    batches = [
        batch
        for _, alike in groupby(items, key=lambda item: decoder.apart(item.language))
        for batch in batched(list(alike), config.evaluation.batch, window)
    ]
    # All ranks make the same number of calls: under ZeRO-3 each is a collective.
    mine, calls = share_of(batches, ranks.rank, ranks.world_size)
    mine += [[]] * (calls - len(mine))
    said, begun = time.monotonic(), 0

    def prepared(batch: Sequence[Item]) -> tuple[list[Clip], Any]:
        once = {(item.shard.path, item.entry.key): item for item in batch}
        read = {at: read_clip(config.data.shards, i.shard, i.entry) for at, i in once.items()}
        clips = [replace(read[i.shard.path, i.entry.key], row=max(i.row, -1)) for i in batch]
        return clips, decoder.prepare(clips)

    with (
        jsonl.appending(transcripts.path_of(config.run, window, ranks.rank)) as out,
        ThreadPoolExecutor(1) as reader,
    ):
        coming = [reader.submit(prepared, batch) for batch in mine[:1]]
        for call, batch in enumerate(mine):
            session.at(call, f"transcribing at the {window:g} s window")
            clips, prompts = coming.pop().result()
            coming = [reader.submit(prepared, following) for following in mine[call + 1 : call + 2]]
            answers = decoder.answer(prompts)
            for item, clip, transcript in zip(batch, clips, answers, strict=True):
                line = _line(config, item, clip, transcript, names, window)
                line |= {"scale": scale} if scale != 1 else {}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            begun += sum(map(len, batches[call * ranks.world_size : (call + 1) * ranks.world_size]))
            if time.monotonic() - said >= 5 or call + 1 == calls:
                said = time.monotonic()
                session.say(f"transcribed {begun}/{len(items)} at the {window:g} s window")
        session.at(max(0, calls - 1), "waiting for the other ranks")
        dist.barrier()
    return len(items)


def _line(
    config: Config,
    item: Item,
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
        "fields": transcripts.fields_of(clip.facts),
    }


def _method(config: Config, row: int) -> str:
    if row >= 0:
        return config.method.kind
    return BARE if row == BARE_ROW else ZERO_SHOT


def _keep_only(session: Session, revision: str, digests: Mapping[str, str]) -> None:
    """Remove transcripts with other settings; all ranks wait for this."""
    if session.ranks.is_first:
        differ = keep_only(session.config, revision, session.index.hash, digests)
        if differ:
            session.say(f"transcribing again, with another {', '.join(differ)}")
    dist.barrier()


def _summarise(config: Config, seconds: float, clips: int, ranks: Ranks) -> None:
    """Add this call's work to the work of earlier calls."""
    cpu = ranks.device.type == "cpu"
    device_s = seconds * ranks.world_size * (torch.get_num_threads() if cpu else 1)
    before = summary.read(config.run)
    if before is not None:
        if clips:
            seconds += before.seconds or 0.0
            device_s += 3600 * (before.device_hours or 0.0)
        clips += before.clips or 0
        if clips == before.clips:
            return
    made = EvaluationSummary(
        seconds=round(seconds, 1),
        clips=clips,
        clips_per_second=round(clips / seconds, 3),
        device="cpu" if cpu else torch.cuda.get_device_name(ranks.device),
        device_hours=round(device_s / 3600, 6),
        max_new_tokens=config.evaluation.max_new_tokens,
        batch=config.evaluation.batch,
    )
    summary.write(config.run, made)
