"""The check that a GPU is for, tried where there is none: on the day that one is lent it must run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# Those that start a process group of their own, and need nothing that other tests do not see.
TRIED = "collectives or nothing_but_waits or stepping_waits or seven_billion"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU: make gpu-check")
def test_the_check_can_be_tried_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "checks.json"
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-k", TRIED]
    done = subprocess.run(
        [*words, str(HERE / "test_gpu.py")],
        cwd=HERE.parents[1],
        env={**os.environ, "SALSA_GPU_CHECK": str(out)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    checks = json.loads(out.read_text(encoding="utf-8"))["checks"]
    rows = [(row["placement"], row["checkpointing"]) for row in checks["seven_billion"]]
    assert rows == [(kind, again) for kind in ("replicate", "zero-3") for again in (False, True)]
