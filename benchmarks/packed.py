"""Adapters packed into one job against the same ones as jobs of their own, on the demo's data.

    python benchmarks/packed.py --json OUT [--cases own-8,shared-8,…] [--steps 3]

own-N       N adapters, each with a seed of its own, so with clips of its own
shared-N    N adapters, learning rates x choices of late encoder layers, all on the same clips
            and the same with the prefix kept, whose filling is told apart (prefix_seconds)
bank-256    one step of 16 clips: 16 adapters of a bank of 256 against a bank of one
halving     successive halving against the full grid; `best` is the winner of each language

Every job is a process of its own, on one thread. `seconds` and `cpu_seconds` are of its training steps,
`startup_seconds` is what comes before them, `whole_cpu_seconds` all of the process. Of separate jobs
only `timed` are run, one of each choice of layers, and their sum is multiplied to all. `ratio` is
separate over packed, in CPU seconds of the steps alone; `ratio_whole` is that of everything, in CPU
seconds too. Cases in OUT not asked for again stay.

{"rows": [{"adapters": 8, "case": "own", "system": "packed", "seconds": …, "ratio": …}, …]}
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

LATE = ["encoder:3", "encoder:4", "encoder:5", "encoder:last-half"]
CASES = ["own-8", "own-32", "shared-8", "shared-32", "bank-256", "halving"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--steps", type=int, default=3, help="of a timed job")
    parser.add_argument("--halving-steps", type=int, default=24, help="of the jobs with and without")
    parser.add_argument("--timed", type=int, default=4, help="separate jobs that are run")
    parser.add_argument("--base", default="~/.cache/salsa-dist/whisper-base")
    parser.add_argument("--shards", default="~/.cache/salsa-dist/shards/tuxpaint-bg-el")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.job:
        return one_job(options.job)
    if options.json is None:
        parser.error("--json OUT is missing")
    cases = options.cases.split(",")
    before = json.loads(options.json.read_text())["rows"] if options.json.is_file() else []
    rows = [row for row in before if row["of"] not in cases]
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(case, Path(folder), options):
                rows.append({"of": case, "date": str(date.today()), "steps": options.steps, **row})
                print(rows[-1], flush=True)
        report = {
            "date": str(date.today()),
            "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
            "threads": 1,
            "command": "python benchmarks/packed.py --json OUT",
            "base": Path(options.base).name,
            "rows": rows,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return None


def measure(case: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    kind, _, count = case.partition("-")
    if kind == "bank":
        return bank(int(count), options)
    if kind == "halving":
        return halving(folder, options)
    adapters = own(int(count)) if kind == "own" else shared(int(count))
    rows = []
    for kept in (False, True) if kind == "shared" else (False,):
        cache = "memory" if kept else "off"
        packed = timed(folder / f"packed-{cache}", adapters, options, prefix_cache=cache)
        # One of each choice of layers: rates and seeds cost nothing.
        sample = adapters[: options.timed]
        jobs = [
            timed(folder / f"{cache}-{i}", [a], options, prefix_cache=cache)
            for i, a in enumerate(sample)
        ]
        keys = ("seconds", "cpu_seconds", "startup_seconds", "prefix_seconds", "whole_cpu_seconds")
        separate = {k: sum(j[k] for j in jobs) * len(adapters) / len(jobs) for k in keys}
        name = kind + (", prefix kept" if kept else "")
        ratio = separate["cpu_seconds"] / packed["cpu_seconds"]
        same = {"adapters": len(adapters), "case": name}
        whole = [s["whole_cpu_seconds"] for s in (packed, separate)]
        rows.append(
            {**same, "system": "packed", **packed, "ratio": ratio, "ratio_whole": whole[1] / whole[0]}
        )
        rows.append({**same, "system": "separate", **separate, "timed": len(jobs), "ratio": 1.0})
    return rows


def own(count: int) -> list[dict[str, Any]]:
    """Adapters whose clips are their own, as those of many languages are."""
    languages = ["bg", "el"]
    return [
        {
            "name": f"a{i}",
            "language": languages[i % 2],
            "seed": i,
            "sites": "encoder:last-half",
            "lr": 0.03,
        }
        for i in range(count)
    ]


def shared(count: int) -> list[dict[str, Any]]:
    """Learning rates x late encoder layers of one language and seed."""
    return [
        {"name": f"a{i}", "language": "bg", "sites": LATE[i % len(LATE)], "lr": 0.01 * 1.2 ** (i // 4)}
        for i in range(count)
    ]


def timed(
    folder: Path,
    adapters: list[dict[str, Any]],
    options: argparse.Namespace,
    clips: int = 4,
    **training: Any,
) -> dict[str, Any]:
    """Seconds of one job of `clips` a step, run as a process of its own."""
    folder.mkdir()
    tree = {
        "run": str(folder / "run"),
        "base": {"name": options.base, "window_s": 5},
        "data": {"shards": options.shards, "clips_per_step": clips},
        "adapters": adapters,
        "training": {"steps": options.steps, "micro_batch": 64, "save_every_s": 3600, **training},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, __file__, "--job", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return dict(json.loads((folder / "times.json").read_text()))


def one_job(path: Path) -> None:
    """Train `path` and write what its parts took beside it."""
    started = time.time() - time.process_time()
    from salsa_dist import load_config, train
    from salsa_dist.training import loop, opening

    spent = {"prefix_seconds": 0.0, "seconds": 0.0, "cpu_seconds": 0.0}
    run_steps, keep = loop.run, opening.keep_prefix

    def watched_run(job: Any) -> int:
        wall, cpu = time.perf_counter(), time.process_time()
        spent["began"] = time.time()
        step = run_steps(job)
        spent["seconds"] = time.perf_counter() - wall
        spent["cpu_seconds"] = time.process_time() - cpu
        return step

    def watched_keep(*args: Any) -> Any:
        wall = time.perf_counter()
        store = keep(*args)
        spent["prefix_seconds"] = time.perf_counter() - wall
        return store

    vars(loop)["run"], vars(opening)["keep_prefix"] = watched_run, watched_keep
    train(load_config(path))
    spent["whole_cpu_seconds"] = time.process_time()
    spent["startup_seconds"] = spent.pop("began") - started - spent["prefix_seconds"]
    (path.parent / "times.json").write_text(json.dumps(spent))


def bank(count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One step of 16 clips in a bank of `count` rows, of which 16 take part, and in a bank of one."""
    import numpy as np

    from salsa_dist.config import PlacementConfig
    from salsa_dist.data.clip import Clip
    from salsa_dist.placement.frozen_base import FrozenBase
    from salsa_dist.placement.ranks import join
    from salsa_dist.speech_llms.load import load_speech_llm
    from salsa_dist.steering.bank import AdapterSpec, Bank
    from salsa_dist.steering.sites import find_layers
    from salsa_dist.steering.widths import site_widths
    from salsa_dist.training.loss import token_losses
    from salsa_dist.training.optimizer import PackedAdam, Schedule, reduce_step

    rng = np.random.default_rng(0)
    audio = [(0.1 * rng.standard_normal(64_000)).astype(np.float32) for _ in range(16)]
    seconds: dict[int, list[float]] = {1: [], count: []}
    with join() as ranks:
        base = load_speech_llm(options.base, window_s=5)
        widths = site_widths(find_layers(base.model))

        def steps_of(rows: int) -> Any:
            taking_part = [i * rows // 16 for i in range(16)]
            clips = [Clip(f"c{i}", audio[i], "лека нощ", "bg", taking_part[i]) for i in range(16)]
            active = sorted(set(taking_part))
            held = Bank([AdapterSpec(f"a{i}", tuple(widths), "salsa") for i in range(rows)], widths)
            adam = PackedAdam(held, [Schedule(0.01, 100, 0.0, "none")] * rows, 1.0)
            batch = base.family.training_batch(clips)

            def step() -> None:
                frozen = FrozenBase(base, held, ranks, PlacementConfig(kind="replicate"))
                start = time.process_time()
                losses, labels = torch.zeros(rows), torch.zeros(rows)
                for vector in held.vectors.values():
                    vector.grad = None
                of_labels = token_losses(frozen, batch)
                of_labels.sum().backward()
                losses.index_add_(0, batch.label_rows, of_labels.detach())
                labels.index_add_(0, batch.label_rows, torch.ones_like(of_labels))
                reduced = reduce_step(held, active, losses, labels, stop=False)
                adam.step(reduced.gradients, active)
                seconds[rows].append(time.process_time() - start)
                frozen.close()

            return step

        steps = {rows: steps_of(rows) for rows in seconds}
        for rows in (1, count):
            steps[rows]()
            seconds[rows].clear()
        order = random.Random(0)
        for _ in range(12):
            for rows in order.sample([1, count], 2):
                steps[rows]()
    ratios = [many / one for one, many in zip(seconds[1], seconds[count], strict=True)]
    return [
        {
            "adapters": rows,
            "case": "a step of 16 clips",
            "system": "packed" if rows > 1 else "separate",
            "cpu_seconds": statistics.median(seconds[rows]),
            "ratio": statistics.median(ratios) if rows > 1 else 1.0,
            "pairs": len(ratios),
        }
        for rows in (count, 1)
    ]


def halving(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The full grid and the same with halving, each in one job."""
    adapters = [
        {"name": f"{language}-{i}-{lr}", "language": language, "sites": sites, "lr": lr}
        for language in ("bg", "el")
        for i, sites in enumerate(["encoder:3", "encoder:last-half", "encoder+llm"])
        for lr in (0.01, 0.03)
    ]
    rows = []
    steps = options.halving_steps
    halve = {"rungs": [steps // 4, steps // 2], "keep": 0.5}
    for name, rule in (("full grid", None), ("halving", halve)):
        run = folder / name.replace(" ", "-")
        more = {"steps": steps, "dev_clips": 8, "halving": rule}
        spent = timed(run, adapters, options, clips=2, **more)
        text = (run / "run" / "events.jsonl").read_text().splitlines()
        dev = next(e for e in map(json.loads, text) if e["event"] == "dev_loss")["adapters"]
        best = [
            min((a["name"] for a in adapters if a["language"] == language), key=lambda n: dev[n])
            for language in ("bg", "el")
        ]
        rows.append(
            {
                "adapters": len(adapters),
                "case": name,
                "system": "packed",
                "steps": steps,
                **spent,
                "best": best,
            }
        )
    for row in rows:
        row["ratio"] = rows[0]["cpu_seconds"] / row["cpu_seconds"]
        row["same_best"] = row["best"] == rows[0]["best"]
    return rows


if __name__ == "__main__":
    main()
