"""A rank that raises is told first, as what it is, and all ranks end within seconds of it."""

import json
import time
from pathlib import Path

import pytest
from ranks import two_ranks
from tiny import make_config

# The second rank raises in step 2. The first waits where nothing of it moves, as in a kernel of NCCL.
# With `stuck`, the failed rank too can't close: it waits for its peer.
FAILS = """
import os, sys, time
from pathlib import Path
from salsa_dist.cli import run_command
from salsa_dist.placement import ranks
from salsa_dist.placement.frozen_base import FrozenBase

config, how, out = sys.argv[1:]
plain, passes = FrozenBase.logits, []

def logits(self, batch):
    passes.append(1)
    if len(passes) > 2:
        if os.environ["RANK"] == "0":
            time.sleep(1000)
        Path(out, "raised").write_text(str(time.time()))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return plain(self, batch)

FrozenBase.logits = logits
if how == "stuck":
    ranks.abort_groups = lambda: time.sleep(1000)
run_command("train", config, [])
"""
SOON_S = 5.0
LOADED_S = 10.0  # what a machine with other work adds


@pytest.mark.parametrize("how", ["closes", "stuck"])
def test_all_ranks_end_soon_after_one_has_raised(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, how: str
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards, training={"steps": 6})
    with two_ranks(tmp_path, FAILS, str(config), how, str(tmp_path)) as both:
        ended = [0.0, 0.0]
        until = time.time() + 400
        while not all(ended) and time.time() < until:
            for rank, process in enumerate(both):
                if not ended[rank] and process.poll() is not None:
                    ended[rank] = time.time()
            time.sleep(0.1)
        statuses = [process.poll() for process in both]
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert statuses == [1, 1], logs
    raised = float((tmp_path / "raised").read_text())
    assert max(ended) - raised < SOON_S + LOADED_S, logs
    failure = json.loads((tmp_path / "failure-1.json").read_text())
    assert "RuntimeError: CUDA error: an illegal memory access" in failure["text"]
    assert failure["time"] - raised < 1 + LOADED_S
    # Who waited is no culprit: it left no failure of its own, and its log says whose it was.
    assert not (tmp_path / "failure-0.json").exists()
    assert "error: rank 1 failed, and rank 0 with it: RuntimeError: CUDA error" in logs[0]
