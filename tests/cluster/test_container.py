"""The launcher's command for a container trains and comes back, with what it mounts and nothing else.

No registry of this machine has Apptainer: `stand_in/apptainer` plays it, with mounts and a root of its
own. What is real are the options that it is called with, Slurm, and all that runs inside.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from pathlib import Path

import pytest
from slurm_cluster import HERE, Cluster, Run, assert_equal
from tiny import make_config


@pytest.mark.timeout(900)
def test_a_run_in_a_container_sees_its_mounts_alone_and_comes_back(
    cluster: Cluster, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    image = tmp_path / "tools.sif"
    # Python and its packages, but not salsa-dist: the job brings its own.
    folders = {os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix}
    own = Path(sysconfig.get_path("purelib")).glob("salsa_dist-*.dist-info")
    lines = [*sorted(folders), *(f"-{folder}" for folder in own)]
    image.write_text("\n".join(lines) + "\n", encoding="utf-8")
    runs = []
    for name, options in {
        "outside": (),
        "inside": (
            *("--container", str(image), "--python", sys.executable),
            *("--setup", f"export PATH={HERE / 'stand_in'}:$PATH"),
            *("--env", "PYTHONPATH=/nowhere"),
        ),
    }.items():
        (tmp_path / name).mkdir()
        training = {"steps": 60, "lr": 0.02, "save_every_s": 0, "hang_after_s": 120}
        config = make_config(tmp_path / name, tiny_base, tiny_shards, training=training)
        runs.append(Run(cluster, config, "--nodes", "2", "--exclude", "n3,n4", *options).launch())
    outside, inside = runs
    inside.wait_for_step(5)
    (task,) = inside.tasks("n2")
    seen = Path(f"/proc/{task}/root")
    assert sorted(path.name for path in (seen / str(tmp_path)[1:]).iterdir()) == ["inside"]
    os.kill(task, signal.SIGKILL)
    for run in runs:
        run.wait_for_end()
    assert len(inside.resumed_at()) == 2
    assert inside.resumed_at()[1] > 0
    assert_equal(inside, outside)
