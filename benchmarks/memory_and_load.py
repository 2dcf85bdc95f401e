"""What loading a base and one training step take of each rank's memory, and how much is read for it.

    python benchmarks/memory_and_load.py --json OUT [--gigabytes 2] [--ranks 4] [--folder FOLDER]

A base of Qwen2-Audio's shape with random weights is written once, in bf16 as bases are; then each
system loads it as fp32 in fresh processes and takes one step with one adapter: some minutes a system
where ranks share two cores. On the CPU; ranks are on two pretended nodes, whose files are on one disk.
(A base loaded in the precision that it is stored in would stay in its mapped file under
from_pretrained, as no GPU can.)

    full, node                   ours: each rank reads the run of elements of each weight that it keeps
    zero3 by transformers        HfDeepSpeedConfig, then from_pretrained
    from_pretrained everywhere   placement replicate: each rank has the whole base

{"rows": [{"system": …, "phase": "load", "base_bytes": …, "world_size": 4, "peak_bytes_per_rank": …,
           "seconds": …, "cpu_seconds": …, "bytes_read": …, "private_bytes_per_rank": …,
           "read_call_bytes": …}, …]}

peak_bytes_per_rank     growth of VmHWM, the most memory that was resident, from just before loading to
                        the end of the phase; of the rank with the most. Pages of a mapped file count.
seconds, cpu_seconds    of the slowest rank by the clock; of all ranks together in user and system time.
private_bytes_per_rank  the same for RssAnon alone, sampled: without pages of mapped files.
bytes_read              bytes that came from the checkpoint's files in this phase, summed over ranks:
                        growth of rchar (/proc/self/io), and of RssFile at its most: what is read by
                        touching a mapped page is not in rchar. All of it comes from the page cache
                        here, as the files were just written.
read_call_bytes         rchar's part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

SYSTEMS = ("full", "node", "zero3 by transformers", "from_pretrained everywhere")
REPOSITORY = Path(__file__).parents[1]
# Of the LLM's layers, in fp32.
WIDTH, INNER, HEADS = 1024, 4096, 16
_LAYER = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, help="where the base is written; default: a temporary one"
    )
    parser.add_argument("--rank-of", nargs=2, metavar=("SYSTEM", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        as_rank(options.rank_of[0], options.folder, Path(options.rank_of[1]))
        return
    if options.json is None:
        parser.error("--json is missing")
    import torch

    import salsa_dist  # noqa: F401 -- before transformers

    sys.path.insert(0, str(REPOSITORY / "tests"))
    import tiny_families

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tiny_families.make_qwen2_audio(Path(folder) / "tiny")
        make_base(tiny_families.make_qwen2_audio(Path(folder) / "base"), options.gigabytes)
        rows = []
        for system in SYSTEMS:
            for row in launch(system, Path(folder), options.ranks):
                print(row, flush=True)
                rows.append(row)
            report = {
                "date": str(date.today()),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
                "command": " ".join(["python", "benchmarks/memory_and_load.py", *sys.argv[1:]]),
                "rows": rows,
            }
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def make_base(folder: Path, gigabytes: float) -> None:
    """Give a tiny base `gigabytes` of weights, in files of 500 MB; its processor and window stay."""
    import torch
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    config = Qwen2AudioConfig.from_pretrained(folder)
    text: Any = config.text_config
    text.hidden_size, text.intermediate_size = WIDTH, INNER
    text.num_attention_heads = text.num_key_value_heads = HEADS
    text.head_dim = WIDTH // HEADS
    text.num_hidden_layers = max(1, round(gigabytes * 1e9 / _LAYER))
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    generation = (folder / "generation_config.json").read_text(encoding="utf-8")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    (folder / "generation_config.json").write_text(generation, encoding="utf-8")


def launch(system: str, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Rows of one system, measured by its ranks."""
    out = folder / system.replace(" ", "-")
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
    ]
    command += [__file__, "--folder", str(folder / "base"), "--rank-of", system, str(out)]
    path = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    )
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    found = [json.loads((out / f"{rank}.json").read_text()) for rank in range(ranks)]
    return [
        {
            "system": system,
            "phase": phase,
            "base_bytes": found[0]["base_bytes"],
            "file_bytes": sum(f.stat().st_size for f in (folder / "base").glob("*.safetensors")),
            "world_size": ranks,
            "peak_bytes_per_rank": max(f[phase]["peak"] for f in found),
            "seconds": round(max(f[phase]["seconds"] for f in found), 2),
            "cpu_seconds": round(sum(f[phase]["cpu_seconds"] for f in found), 2),
            "bytes_read": sum(f[phase]["read"] + f[phase]["mapped"] for f in found),
            "private_bytes_per_rank": max(f[phase]["private"] for f in found),
            "read_call_bytes": sum(f[phase]["read"] for f in found),
        }
        for phase in ("load", "train")
    ]


def as_rank(system: str, folder: Path, out: Path) -> None:
    """Load the base as `system` does, take two steps, write what they took."""
    import torch
    import torch.distributed as dist
    from conformance import clips, gradients, random_bank

    from salsa_dist.config import BaseConfig, PlacementConfig
    from salsa_dist.libraries.deepspeed import start_deepspeed
    from salsa_dist.placement.frozen_base import FrozenBase
    from salsa_dist.placement.loading import load_base, silent
    from salsa_dist.placement.ranks import Ranks, join
    from salsa_dist.planner.ds_settings import ds_settings
    from salsa_dist.speech_llms.load import load_speech_llm

    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    with join() as world:
        nodes = max(1, world.world_size // 2)
        ranks = Ranks(world.rank, world.world_size, world.rank % nodes, nodes, world.device)
        lean = REPOSITORY / "ds_configs/lean.json"
        # Libraries are no part of what loading takes: a tiny base has them all imported.
        start_deepspeed()
        for filled in (True, False):
            load_speech_llm(folder.with_name("tiny"), filled=filled)
        memory = Memory()
        dist.barrier()
        with memory.phase(facts, "load"):
            if system == "zero3 by transformers":
                from transformers.integrations import HfDeepSpeedConfig

                kept = HfDeepSpeedConfig(ds_settings(lean, "full", torch.float32))
                base = load_speech_llm(folder)
                placement = PlacementConfig(kind="full", ds_config=lean)
                facts["kept"] = bool(kept)
            else:
                kind: Any = "replicate" if system == "from_pretrained everywhere" else system
                placement = PlacementConfig(kind=kind, ds_config=lean)
                base = load_base(BaseConfig(name=str(folder)), ranks, placement, silent)
            shapes = [getattr(p, "ds_shape", p.shape) for p in base.model.parameters()]
            bank = random_bank(base, ["salsa"])
            frozen = FrozenBase(base, bank, ranks, placement)
            dist.barrier()
        facts["base_bytes"] = 4 * sum(shape.numel() for shape in shapes)
        mine = [c for c in clips(base) if c.row == 0][:1]
        with memory.phase(facts, "train"):
            gradients(frozen, mine)
        (out / f"{ranks.rank}.json").write_text(json.dumps(facts))


class Memory:
    """What /proc says of this process, from its making on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts from what is resident now
        self.before = self.status()

    @contextmanager
    def phase(self, facts: dict[str, Any], name: str) -> Iterator[None]:
        """Measure the block; peaks count from the making of this, not from the block's start."""
        read, started, worked = self.rchar(), time.monotonic(), time.process_time()
        files = self.status()["RssFile"]
        private = mapped = 0
        ended = threading.Event()

        def sample() -> None:
            nonlocal private, mapped
            while not ended.wait(0.005):
                now = self.status()
                private = max(private, now["RssAnon"] - self.before["RssAnon"])
                mapped = max(mapped, now["RssFile"] - files)

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            yield
        finally:
            ended.set()
            sampler.join()
        facts[name] = {
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - worked,
            "peak": self.status()["VmHWM"] - self.before["VmRSS"],
            "private": private,
            "mapped": mapped,
            "read": self.rchar() - read,
        }

    @staticmethod
    def status() -> dict[str, int]:
        """Bytes."""
        lines = Path("/proc/self/status").read_text().splitlines()
        pairs = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS", "Rss")))
        return {pair[0].rstrip(":"): 1024 * int(pair[1]) for pair in pairs}

    @staticmethod
    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    main()
