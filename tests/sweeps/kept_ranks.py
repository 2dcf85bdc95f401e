"""One of two ranks that train with a kept prefix and with halving; started by test_kept_ranks.py.

    torchrun --nproc_per_node 2 kept_ranks.py OUT

OUT/jobs.json names the configs, trained one after another. Of each job every rank writes
OUT/NAME-rankR.json: the modules that ran in it, in their order. A job with `cut` is killed before the
decision of that rung is on disk, and trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from salsa_dist import load_config, train
from salsa_dist.training import job as jobs


class Killed(Exception):
    pass


def main(out: Path) -> None:
    torch.set_num_threads(1)
    for job in json.loads((out / "jobs.json").read_text()):
        config = load_config(job["config"])
        ran: list[str] = []
        hook = register_module_forward_hook(lambda module, *a, ran=ran: ran.append(str(module)))
        if job["cut"] is not None:
            killed_before_rung(config, job["cut"])
        assert train(config).finished
        hook.remove()
        digest = hashlib.sha256("\n".join(ran).encode()).hexdigest()
        facts = {"calls": len(ran), "digest": digest}
        rank = os.environ["RANK"]
        (out / f"{job['name']}-rank{rank}.json").write_text(json.dumps(facts))


def killed_before_rung(config: Any, rung: int) -> None:
    real = jobs.Job._drop_worse

    def killed(self: Any, step: int) -> None:
        if step == rung:
            raise Killed
        real(self, step)

    jobs.Job._drop_worse = killed  # type: ignore[method-assign]
    try:
        train(config)
    except Killed:
        pass
    else:
        raise AssertionError("nothing was killed")
    jobs.Job._drop_worse = real  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
