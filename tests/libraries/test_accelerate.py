"""What salsa_dist/libraries/accelerate.py assumes, in a process without any state of accelerate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from salsa_dist.libraries.accelerate import trackers
tracker = trackers().TensorBoardTracker("tensorboard", sys.argv[1])
tracker.main_process_only = False
tracker.start()
tracker.log({"loss": 1.0}, step=0)
tracker.finish()
from accelerate.state import PartialState
print(PartialState._shared_state)
"""


def test_a_tracker_works_without_accelerates_state(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{}"
    assert list(tmp_path.rglob("events.out.tfevents*"))
