"""One cluster a session. A machine that can't have it leaves its tests out, and says why."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_not():
        if os.environ.get("SALSA_REQUIRE_CLUSTER") == "1":
            pytest.fail(f"tests/cluster was skipped: {reason}")
        pytest.skip(f"skipped: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="salsa-"))  # short: it holds munge's socket
    try:
        with Cluster(folder / "slurm") as cluster:
            yield cluster
        network = f" {folder}/slurm"
        left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and network in _command(p)]
        assert not left, f"the cluster left processes behind: {left}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
