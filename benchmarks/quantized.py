"""What does a quantised base save, and what does it cost in time and in errors?

    python benchmarks/quantized.py --json OUT --run DIR [--kinds none int8 nf4 bnb8] [--steps 32]

For each kind one adapter is trained on its base, with the same clips and seed, and its test clips are
transcribed with and without it: bytes of the base in memory, CPU seconds per training clip and per
transcript, CER zero-shot and steered. `none` is the base in the precision of `--dtype`. A kind whose
rows are in OUT already is not run again. Needs `pip install 'salsa-dist[quantization]'`.

{"rows": [{"quantization": "int8", "base_bytes": …, "cer": {"zero-shot": 0.61, "steered": 0.44}, …}]}
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from salsa_dist import evaluate, train
from salsa_dist.config import parse_config
from salsa_dist.report.one_run import read_report
from salsa_dist.run import events

CACHE = Path("~/.cache/salsa-dist").expanduser()


def row_of(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One base: trained on, and transcribed with."""
    quantization = None if kind == "none" else kind
    tree = {
        "run": str(options.run / kind),
        "device": options.device,
        "base": {
            "name": str(options.base),
            "dtype": options.dtype,
            "quantization": quantization,
            "window_s": options.window,
        },
        "data": {"shards": str(options.shards), "clips_per_step": 8, "readers": 2},
        "steering": {"sites": "encoder+llm"},
        "adapters": [{"name": options.language, "language": options.language}],
        "training": {"steps": options.steps, "lr": 0.03, "hang_after_s": 3600},
        "evaluation": {"split": "test", "clips": options.clips, "max_new_tokens": 24},
        "trackers": [],
    }
    config = parse_config(tree, "benchmark")
    started = time.process_time()
    train(config)
    trained = time.process_time()
    evaluate(config)
    decoded = time.process_time()
    rows = read_report(config.run).json["results"]
    [placement] = [e for e in events.read(config.run) if e["event"] == "placement"][-1:]
    last = [e for e in events.read(config.run) if e["event"] == "step"][-1]
    return {
        "quantization": quantization,
        "base_bytes": placement["base_bytes"],
        "last_loss": last["adapters"][options.language]["loss"],
        "cpu_seconds_per_training_clip": (trained - started) / (8 * options.steps),
        "cpu_seconds_per_transcript": (decoded - trained) / (2 * options.clips),
        "cer": {row["method"]: round(row["cer"], 4) for row in rows},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--kinds", nargs="+", default=["none", "int8", "nf4", "bnb8"])
    parser.add_argument("--base", type=Path, default=CACHE / "whisper-base")
    parser.add_argument("--shards", type=Path, default=CACHE / "shards/tuxpaint-bg-el")
    parser.add_argument("--language", default="bg")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--window", type=float, default=5.0, help="of training and of transcribing")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--clips", type=int, default=48, help="test clips")
    options = parser.parse_args()
    head = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "command": " ".join(["python", "benchmarks/quantized.py", *sys.argv[1:]]),
    }
    found = (
        json.loads(options.json.read_text(encoding="utf-8"))["rows"] if options.json.exists() else []
    )
    for kind in options.kinds:
        if kind in [row["quantization"] or "none" for row in found]:
            continue
        found.append(row_of(kind, options))
        print(json.dumps(found[-1]), flush=True)
        text = json.dumps({**head, "rows": found}, indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
