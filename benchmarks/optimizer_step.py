"""What stepping the adapters costs beside the passes: operations that are launched, and time.

    python benchmarks/optimizer_step.py --json OUT [--adapters 1,40,160] [--width 64]

Each row is the second step of a bank over 32 + 32 sites: the all-reduce of a group of one, Adam, and
the numbers that are recorded. Operations are those of PyTorch's dispatcher, each a kernel on a GPU or
less.

{"rows": [{"adapters": 160, "sites": 64, "operations": 146, "scalars_read": 0, "ms": …}, …]}
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from operations import Counted
from report_file import write_report

from salsa_dist.placement.ranks import join
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.training.optimizer import PackedAdam, Schedule

SITES = [*(f"encoder.{i}" for i in range(32)), *(f"llm.{i}" for i in range(32))]
ROUNDS = 10


def main() -> None:
    """Measure each number of adapters and write JSON."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--adapters", default="1,40,160")
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with join():
        rows = [measured(int(count), args.width) for count in args.adapters.split(",")]
    write_report(args.json, rows, width=args.width)
    print("\n".join(map(str, rows)))


def measured(adapters: int, width: int) -> dict[str, Any]:
    """The step of `adapters` that all steer every site."""
    widths = dict.fromkeys(SITES, width)
    bank = Bank([AdapterSpec(f"a{i}", tuple(SITES), "salsa") for i in range(adapters)], widths)
    adam = PackedAdam(bank, [Schedule(0.01, 100, 0.0, "none")] * adapters, 1.0)
    rows = list(range(adapters))
    sums, counts = torch.ones(adapters), torch.full((adapters,), 30.0)

    def step() -> None:
        reduced = adam.reduce(rows, sums, counts, False, [1.0, 2.0, 3.0])
        norms, rates = adam.step(reduced.gradients, rows)
        for told in (reduced.losses, reduced.labels, norms, rates):
            told.tolist()

    for vectors in bank.vectors.values():
        vectors.grad = torch.ones_like(vectors)
    step()
    with Counted() as counted:
        step()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {
        "adapters": adapters,
        "sites": len(SITES),
        "operations": sum(counted.ops.values()),
        "scalars_read": sum(n for name, n in counted.ops.items() if "local_scalar" in name),
        "ms": round(1000 * statistics.median(times), 2),
    }


if __name__ == "__main__":
    main()
