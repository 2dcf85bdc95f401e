"""Which learning rate is best on dev clips, and how far from it is the estimate of training itself?

    python benchmarks/learning_rates.py --json OUT [--base DIR --shards DIR --languages bg,el --run DIR]
    python benchmarks/learning_rates.py --json OUT --tiny [FAMILY …]   tiny checkpoints: these, or all

One bank per base has an adapter for each language, seed and rate, and one that estimates its rate.
Adapters of one seed have the same clips. Rates are relative to the activations (`training.lr_scale:
auto`). After the last step each adapter has a loss on dev clips; losses and estimates are means over
the seeds. The untrained loss is that of one step at a rate too small to matter.

{"rows": [{"base": …, "language": "bg", "seeds": 1, "untrained": 2.1, "losses": {"0.03": 1.31, …},
           "best": 0.05, "estimated": {"rate": 0.033, "loss": 1.33}, "estimated_over_best": 1.02,
           "by_seed": {"0.03": [1.31], …, "estimated": [1.33]}}, …]}
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from report_file import machine, write_report

from salsa_dist import load_speech_llm, train
from salsa_dist.config import Config, parse_config
from salsa_dist.corpus.timed import with_times
from salsa_dist.run import events
from salsa_dist.run.folder import RunFolder
from salsa_dist.steering.sites import find_layers
from salsa_dist.steering.vectors import SteeringVectors

CACHE = Path("~/.cache/salsa-dist").expanduser()
RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
UNTRAINED = 1e-9
LONG = (4.0, 6.0)  # seconds of noise for bases that need word times or have few frames per second
FEW_FRAMES = ("parakeet_ctc", "omniasr_ctc")
Row = dict[str, Any]


def rows_of(
    run: Path,
    base: Path,
    shards: Path,
    languages: list[str],
    rates: Sequence[float],
    more: dict[str, Any],
    seeds: Sequence[int] = (0,),
) -> list[Row]:
    """What each rate comes to in each language, in one job, in the folder `run`."""
    tree = {
        "run": str(run),
        "base": {"name": str(base)},
        "adapters": [
            {
                "name": _name(language, rate, seed),
                "language": language,
                "seed": seed,
                "lr": rate,
                "steps": steps,
            }
            for language in languages
            for seed in seeds
            for rate, steps in ((UNTRAINED, 1), (None, None), *((rate, None) for rate in rates))
        ],
        "trackers": [],
        **more,
    }
    tree["training"] = {"lr": "auto", **tree["training"]}
    tree["data"] = {"shards": str(shards), **tree["data"]}
    config = parse_config(tree, "benchmark")
    if not train(config).finished:
        raise SystemExit(f"stopped: with --run {run} the same command goes on")
    measured = [e for e in events.read(config.run) if e["event"] == "dev_loss"][-1]
    found = measured["adapters"]
    return [_row(config, base.name, language, rates, seeds, found) for language in languages]


def _name(language: str, rate: float | None, seed: int) -> str:
    return f"{language}-{'estimated' if rate is None else f'{rate:g}'}-{seed}"


def _row(
    config: Config,
    base: str,
    language: str,
    rates: Sequence[float],
    seeds: Sequence[int],
    found: dict[str, float],
) -> Row:
    def by_seed(rate: float | None) -> list[float]:
        return [found.get(_name(language, rate, seed), float("inf")) for seed in seeds]

    losses = {rate: fmean(by_seed(rate)) for rate in rates}
    best = min(losses, key=lambda rate: losses[rate])
    folders = [RunFolder(config.run).adapter(_name(language, None, seed)) for seed in seeds]
    own = [facts.lr for folder in folders if (facts := SteeringVectors.load(folder).training)]
    loss = fmean(by_seed(None))
    every = {**{f"{rate:g}": by_seed(rate) for rate in rates}, "estimated": by_seed(None)}
    return {
        "base": base,
        "language": language,
        "seeds": len(seeds),
        "untrained": round(fmean(by_seed(UNTRAINED)), 4),
        "losses": {f"{rate:g}": round(loss, 4) for rate, loss in losses.items()},
        "best": best,
        "estimated": {"rate": float(f"{fmean(own):.4g}"), "loss": round(loss, 4)},
        "estimated_over_best": round(loss / losses[best], 4),
        "by_seed": {name: [round(loss, 4) for loss in own] for name, own in every.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=CACHE / "whisper-base")
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-bg-el")
    parser.add_argument("--languages", default="bg,el")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--stride", type=int, default=16, help="training.silence_stride")
    parser.add_argument("--run", type=Path, help="folder of its run, to go on after a stop")
    parser.add_argument("--tiny", nargs="*", help="tiny checkpoints instead: of these families, or all")
    options = parser.parse_args()
    training = {
        "steps": options.steps,
        "dev_clips": 48,
        "micro_batch": 8,
        "save_every_s": 60,
        "hang_after_s": 3600,  # a step of many adapters takes long where others use the machine
    }
    rows = []
    if options.tiny is not None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from conformance import evenly
        from every_family import EVERY_FAMILY
        from tiny import make_shards
        from tiny_frames import FRAMES

        if unknown := set(options.tiny) - set(EVERY_FAMILY):
            parser.error(f"--tiny: {', '.join(sorted(unknown))}: known are {', '.join(EVERY_FAMILY)}")
        with tempfile.TemporaryDirectory() as scratch:
            short = make_shards(Path(scratch) / "short", train=96, held_out=24)
            plain = make_shards(Path(scratch) / "plain", train=96, held_out=24, seconds=LONG)
            timed = Path(scratch) / "timed"
            with_times(plain, timed, lambda clip: evenly(clip.text, clip.seconds), by={})
            for name in options.tiny or EVERY_FAMILY:
                base = EVERY_FAMILY[name](Path(scratch) / name)
                shards, own = short, training
                if name in FRAMES or name in FEW_FRAMES:
                    # With random weights, hundreds of frames per label give losses above the default.
                    shards, own = timed, {**training, "max_loss": 1000}
                data = {"clips_per_step": 8, "readers": 2}
                sites = "+".join(find_layers(load_speech_llm(base).model))
                more = {"data": data, "steering": {"sites": sites}, "training": own}
                run = Path(scratch) / f"run-{name}"
                rows += rows_of(run, base, shards, ["bg"], options.rates, more, options.seeds)
                print(json.dumps(rows[-1]), flush=True)
                report(options.json, rows)
    else:
        data = {"clips_per_step": 6, "join_clips": 2, "readers": 2}
        training["silence_stride"] = options.stride
        found = options.languages.split(",")
        more = {"data": data, "training": training}
        with tempfile.TemporaryDirectory() as scratch:
            run = options.run or Path(scratch)
            rows = rows_of(run, options.base, options.shards, found, options.rates, more, options.seeds)
        print(*map(json.dumps, rows), sep="\n")
        report(options.json, rows)


def report(path: Path, rows: list[Row]) -> None:
    write_report(path, rows, machine(f"{torch.get_num_threads()} CPU threads"))


if __name__ == "__main__":
    main()
