"""What steering adds to a forward pass of a speech encoder.

    python benchmarks/steering_overhead.py --json OUT [--base FOLDER] [--batches 1,4] [--pairs 20]

Each pair is one plain and one steered pass over the same features, in random order, on one thread;
plain has no hooks at all, steered adds a vector at every layer. The ratio is the median of the pairs'.
On the CPU seconds are those of the process, so other work on the machine adds none of its own.

{"rows": [{"rule": "add", "batch": 1, "seconds_plain": …, "seconds_steered": …, "ratio": …}, …]}
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from report_file import write_report

from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import site_modules
from salsa_dist.steering.widths import output_width

DEFAULT_BASE = Path("~/.cache/salsa-dist/whisper-base").expanduser()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--base", default=str(DEFAULT_BASE))
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_speech_llm(options.base, device=options.device)
    encoder = base.model.get_encoder()
    sites = {s: m for s, m in site_modules(base.model).items() if s.startswith("encoder.")}
    widths = {s: output_width(m) for s, m in sites.items()}
    rows = []
    for batch in map(int, options.batches.split(",")):
        features = torch.randn(
            batch, encoder.config.num_mel_bins, 2 * encoder.config.max_source_positions
        )
        features = features.to(options.device)
        for rule in ("add", "salsa"):
            bank = Bank([AdapterSpec("a", tuple(sites), rule)], widths, options.device)
            with torch.no_grad():
                for vector in bank.vectors.values():
                    vector.normal_(std=0.1)
            row = {
                "rule": rule,
                "batch": batch,
                **compare(encoder, features, bank, sites, options.pairs),
            }
            print(row, flush=True)
            rows.append(row)
    write_report(
        options.json,
        rows,
        device=options.device,
        base=Path(options.base).name,
        pairs=options.pairs,
    )


def compare(
    encoder: Any, features: torch.Tensor, bank: Bank, sites: dict[str, Any], pairs: int
) -> dict[str, float]:
    """Seconds of a plain and of a steered pass, and how the second compares with the first."""
    order = random.Random(0)

    def plain() -> None:
        encoder(features)

    def steered() -> None:
        with ExitStack() as stack:
            stack.enter_context(bank.attached(sites))
            stack.enter_context(bank.rows(0))
            encoder(features)

    seconds: dict[Callable[[], None], list[float]] = {plain: [], steered: []}
    with torch.no_grad():
        plain()
        steered()
        for _ in range(pairs):
            for run in order.sample([plain, steered], 2):
                seconds[run].append(timed(run, features.device))
    ratios = [s / p for p, s in zip(seconds[plain], seconds[steered], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "seconds_plain": statistics.median(seconds[plain]),
        "seconds_steered": statistics.median(seconds[steered]),
        "ratio": statistics.median(ratios),
        "ratio_quartile_1": quartiles[0],
        "ratio_quartile_3": quartiles[2],
    }


def timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
