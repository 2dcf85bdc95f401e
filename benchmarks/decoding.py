"""Clips per second of an evaluation and of `transcribe`, beside transformers' own speech recognition
pipeline.

    python benchmarks/decoding.py --json OUT [--base FOLDER] [--shards FOLDER] [--language bg]
        [--clips 6] [--batch 6] [--pipeline-batches 1,6] [--dtypes float32]
        [--cases zero-shot,encoder:last-half*2] [--rounds 2] [--window 30]

`ours` is the evaluation; `transcribe`, the function for users' recordings, runs in the case zero-shot.
The same clips, language, greedy decoding and token limit; rounds are interleaved, after one that is
not counted. `zero-shot` is the base as it is. `SITES*N` is the base as it is and N adapters with random
vectors: ours in one pass, the pipeline once for each, steered by the same vectors. CPU seconds are user
and system time, so other work on the machine adds little. Reading the shards is left out of both.

`same_text` is the share of ours that is letter for letter what the pipeline makes in batches as large;
its generate() keeps every row to the end and encodes a clip again for each adapter.

{"rows": [{"who": "ours", "case": …, "dtype": …, "batch": …, "transcripts": …, "cpu_s": …, "wall_s": …,
           "transcripts_per_cpu_s": …, "same_text": …}, …]}
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from report_file import machine, write_report

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import read_clip
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers, select, site_modules
from salsa_dist.steering.widths import site_widths
from salsa_dist.transcription.transcribe import transcribe

CACHE = Path("~/.cache/salsa-dist").expanduser()
Run = Callable[[], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--base", default=str(CACHE / "whisper-base"))
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-grid")
    parser.add_argument("--language", default="bg")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--pipeline-batches", default="1,6")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--cases", default="zero-shot,encoder:last-half*2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--window", type=float, help="audio window in seconds; else the base's own")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    from transformers import logging

    logging.set_verbosity_error()
    if options.device == "cpu":
        torch.set_num_threads(1)
    clips = some_clips(options.shards, options.language, options.clips)
    rows = []
    for dtype in options.dtypes.split(","):
        base = load_speech_llm(options.base, device=options.device, window_s=options.window)
        base.model.to(getattr(torch, dtype))
        for case in options.cases.split(","):
            rows += compare(case, dtype, base, clips, options)
    write_report(
        options.json,
        rows,
        on=f"{machine()}, shared with other work",
        threads=torch.get_num_threads(),
        device=options.device,
        base=Path(options.base).name,
        window_s=base.window_s,
        clips=len(clips),
        clip_seconds=round(sum(clip.seconds for clip in clips), 1),
        max_new_tokens=options.max_new_tokens,
        rounds=options.rounds,
    )


def compare(
    case: str, dtype: str, base: SpeechLLM, clips: Sequence[Clip], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for ours, one for `transcribe`, and one for the pipeline at each batch size."""
    bank = random_bank(case, base, options.device)
    with join() as ranks:
        ranks = replace(ranks, device=torch.device(options.device))
        runs: dict[tuple[str, int], Run] = {
            ("ours", options.batch): lambda: ours(base, bank, ranks, clips, options)
        }
        if not bank.specs:
            runs["transcribe", options.batch] = partial(as_recordings, base, clips, options)
        for size in map(int, options.pipeline_batches.split(",")):
            runs["pipeline", size] = partial(pipeline, base, bank, clips, size, options)
        taken: dict[tuple[str, int], list[tuple[float, float]]] = {run: [] for run in runs}
        texts: dict[tuple[str, int], list[str]] = {}
        ours(base, bank, ranks, clips[:2], options)
        for number in range(options.rounds):
            for name, run in list(runs.items())[:: -1 if number % 2 else 1]:
                cpu, wall = time.process_time(), time.perf_counter()
                texts[name] = run()
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows = []
    mine = texts["ours", options.batch]
    for (who, size), seconds in taken.items():
        cpu_s, wall_s = (statistics.median(values) for values in zip(*seconds, strict=True))
        same = sum(a == b for a, b in zip(mine, texts[who, size], strict=True)) / len(mine)
        row = {
            "who": who,
            "case": case,
            "dtype": dtype,
            "batch": size,
            "transcripts": len(mine),
            "cpu_s": round(cpu_s, 2),
            "wall_s": round(wall_s, 2),
            "cpu_s_each_round": [round(cpu, 2) for cpu, _ in seconds],
            "transcripts_per_cpu_s": round(len(mine) / cpu_s, 3),
            "transcripts_per_wall_s": round(len(mine) / wall_s, 3),
            "same_text": round(same, 4),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def ours(
    base: SpeechLLM, bank: Bank, ranks: Ranks, clips: Sequence[Clip], options: argparse.Namespace
) -> list[str]:
    """Transcripts as `salsa-dist evaluate` makes them, clip by clip, the base's own first."""
    frozen = FrozenBase(base, bank, ranks, PlacementConfig(kind="replicate"))
    items = [replace(clip, row=row) for clip in clips for row in range(-1, len(bank.specs))]
    texts: list[str] = []
    for i in range(0, len(items), options.batch):
        made = generate(frozen, items[i : i + options.batch], options.max_new_tokens)
        texts += [transcript.text for transcript in made]
    frozen.close()
    return texts


def as_recordings(base: SpeechLLM, clips: Sequence[Clip], options: argparse.Namespace) -> list[str]:
    """The same by `transcribe`, as a user's recordings."""
    recordings = [(clip.audio, SAMPLE_RATE) for clip in clips]
    length = options.max_new_tokens
    return transcribe(base, recordings, options.language, batch=options.batch, max_new_tokens=length)


def pipeline(
    base: SpeechLLM, bank: Bank, clips: Sequence[Clip], size: int, options: argparse.Namespace
) -> list[str]:
    """The same by transformers' pipeline, which is run once for each adapter."""
    from transformers import AutomaticSpeechRecognitionPipeline

    family: Any = base.family
    recognise = AutomaticSpeechRecognitionPipeline(
        model=base.model,
        tokenizer=family.tokenizer,
        feature_extractor=family.features,
        device=options.device,
    )
    wish = {
        "language": family.announced(options.language),
        "task": "transcribe",
        "num_beams": 1,
        "do_sample": False,
        "max_new_tokens": options.max_new_tokens,
    }
    passes = []
    for row in range(-1, len(bank.specs)):
        with ExitStack() as stack:
            stack.enter_context(bank.attached(site_modules(base.model, base.layers)))
            if row >= 0:
                stack.enter_context(bank.rows(row))
            audio: Any = [{"raw": clip.audio, "sampling_rate": SAMPLE_RATE} for clip in clips]
            made = recognise(audio, batch_size=size, generate_kwargs=wish)
            passes.append([str(one["text"]).strip() for one in made])
    return [texts[i] for i in range(len(clips)) for texts in passes]


def some_clips(shards: Path, language: str, count: int) -> list[Clip]:
    """The first test clips of a language, long ones first, as an evaluation has them."""
    index = ShardIndex.load(shards)
    entries = ((shard, entry) for shard in index.select("test", language) for entry in shard.entries)
    clips = [read_clip(shards, shard, entry) for shard, entry in islice(entries, count)]
    return sorted(clips, key=lambda clip: -clip.seconds)


def random_bank(case: str, base: SpeechLLM, device: str) -> Bank:
    """The adapters of `SITES*N`, their vectors small enough that the base still says words."""
    if case == "zero-shot":
        return Bank([], {}, device)
    words, _, count = case.partition("*")
    layers = find_layers(base.model, base.layers)
    sites = tuple(select(words, {part: len(modules) for part, modules in layers.items()}))
    specs = [AdapterSpec(f"{words}-{i}", sites, "salsa") for i in range(int(count or 1))]
    widths = site_widths(layers)
    bank = Bank(specs, {site: widths[site] for site in sites}, device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for vectors in bank.vectors.values():
            vectors.copy_(0.1 * torch.randn(vectors.shape, generator=generator))
    return bank


if __name__ == "__main__":
    main()
