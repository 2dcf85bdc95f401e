"""Clips a second of each placement, and the share of a step that its modules wait for weights.

    python benchmarks/placement_speed.py --json OUT [--base FOLDER] [--shards FOLDER] [--steps 4]

Each number of ranks is one start of torchrun on this machine, that trains one adapter at every layer
under each placement in turn; four ranks stand for two nodes of two. With `--adapters 2`, two adapters
are trained at the last half of the encoder, and share the clips. The same clips are read and made
into batches before anything is timed. The first two steps are not counted, since DeepSpeed records the
order of modules in them. `gather_share` is of the slowest rank, from a step of its own: what waits for
weights waits for ranks that are late too, and where there are fewer cores than ranks they are.

{"rows": [{"placement": "node", "ranks": 4, "clips_per_second": …, "gather_share": …}, …]}
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from report_file import machine, write_report

from salsa_dist.config import PlacementConfig
from salsa_dist.data.clip import Clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shards import BadSample, read_ranges, read_sample
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.measured import measured_facts, watched
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers
from salsa_dist.steering.widths import site_widths
from salsa_dist.training.loss import token_losses
from salsa_dist.training.optimizer import PackedAdam, Schedule, reduce_step

CACHE = Path("~/.cache/salsa-dist").expanduser()
# Ranks: the placements that differ there.
PLACEMENTS: dict[int, tuple[str, ...]] = {2: ("replicate", "full"), 4: ("replicate", "node", "full")}
NOT_COUNTED = 2
CLIPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--base", default=str(CACHE / "whisper-base"))
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-bg-el")
    parser.add_argument("--language", default="bg")
    parser.add_argument("--window", type=float, default=5.0, help="audio window in seconds")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--ranks", type=int, nargs="+", choices=PLACEMENTS, default=list(PLACEMENTS))
    parser.add_argument("--adapters", type=int, default=1, help="adapters that share the clips")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        measure_all(options)
        return
    rows = []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.json"
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
            launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
            subprocess.run([*launch, *sys.argv, "--rank", "--json", str(out)], check=True)
            rows += json.loads(out.read_text(encoding="utf-8"))
    write_report(
        options.json,
        rows,
        on=machine(f"{os.cpu_count()} cores"),
        base=Path(options.base).name,
        window_s=options.window,
        clips_per_step=CLIPS,
    )


def measure_all(options: argparse.Namespace) -> None:
    """One rank of one start."""
    torch.set_num_threads(1)
    rows = []
    with join() as ranks:
        # Two nodes, as far as placements are concerned.
        ranks = replace(ranks, local_world_size=2)
        for kind in PLACEMENTS[ranks.world_size]:
            row = measure(options, ranks, kind)
            if ranks.is_first:
                print(row, flush=True)
            rows.append(row)
        if ranks.is_first:
            options.json.write_text(json.dumps(rows), encoding="utf-8")


def measure(options: argparse.Namespace, ranks: Ranks, kind: Any) -> dict[str, Any]:
    speech_llm = load_speech_llm(options.base, window_s=options.window, device=ranks.device)
    widths = site_widths(find_layers(speech_llm.model))
    sites = list(widths)
    if options.adapters > 1:
        encoder = [site for site in sites if site.startswith("encoder.")]
        sites = encoder[len(encoder) // 2 :]
    rows = list(range(options.adapters))
    bank = Bank([AdapterSpec(str(row), tuple(sites), "salsa") for row in rows], widths, ranks.device)
    steps = NOT_COUNTED + options.steps + 1
    optimizer = PackedAdam(bank, [Schedule(0.01, steps, 0.05, "cosine") for _ in rows], 1.0)
    clips = read_clips(options, CLIPS * steps)
    ready = []
    for step in range(steps):
        own = clips[step * CLIPS + ranks.rank : (step + 1) * CLIPS : ranks.world_size]
        pairs = [replace(clip, row=row) for clip in own for row in rows]
        family = speech_llm.family
        alone = options.adapters == 1
        ready.append(family.training_batch(own) if alone else family.shared_batch(pairs, own))
    base = FrozenBase(speech_llm, bank, ranks, PlacementConfig(kind=kind))

    def one_step(step: int) -> float:
        dist.barrier()
        started = time.perf_counter()
        for vector in bank.vectors.values():
            vector.grad = None
        losses = token_losses(base, ready[step])
        losses.sum().backward()
        base.after_backward()
        of_rows, ones = ready[step].label_rows, torch.ones_like(losses)
        sums, labels = (
            losses.new_zeros(len(rows)).index_add(0, of_rows, values.detach())
            for values in (losses, ones)
        )
        reduced = reduce_step(bank, rows, sums, labels, stop=False)
        optimizer.step(reduced.gradients, rows)
        return time.perf_counter() - started

    seconds = [one_step(step) for step in range(steps - 1)][NOT_COUNTED:]
    with watched(base) as traffic:
        seconds_watched = one_step(steps - 1)
    measured = measured_facts(base, traffic, 0)
    share = torch.tensor(traffic.gather_seconds / seconds_watched, device=ranks.device)
    dist.all_reduce(share, op=dist.ReduceOp.MAX)
    base.close()
    return {
        "placement": kind,
        "ranks": ranks.world_size,
        "ranks_a_copy": base.size,
        "adapters": options.adapters,
        "clips_per_second": CLIPS / statistics.median(seconds),
        "seconds_per_step": statistics.median(seconds),
        "seconds_fastest": min(seconds),
        "seconds_slowest": max(seconds),
        "gather_share": float(share),
        "gathered_bytes_per_step": measured["gathered_bytes_per_step"],
        "resident_bytes_between_steps": measured["resident_bytes_between_steps"],
        "peak_bytes": measured["peak_bytes"],
        "base_bytes": base.base_bytes,
    }


def read_clips(options: argparse.Namespace, count: int) -> list[Clip]:
    """The first `count` clips of the language's shards."""
    clips: list[Clip] = []
    for shard in ShardIndex.load(options.shards).select("train", options.language):
        path = options.shards / shard.path
        for entry, raw in read_ranges(path, shard.entries[: count - len(clips)]):
            if isinstance(raw, BadSample):
                raise raw
            audio, facts = read_sample(raw, path, entry.key)
            clips.append(Clip(entry.key, audio, str(facts["text"]), options.language, 0))
    return clips


if __name__ == "__main__":
    main()
