"""One rank that trains and evaluates, and notes at each load of a base what is left of those before.

torchrun --nproc_per_node 2 base_after_base.py OUT CONFIG...      OUT/CONFIG'S FOLDER-rank-N.json
"""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch

from salsa_dist import evaluate, load_config, train
from salsa_dist.run import session

loaded_before: list[weakref.ref[Any]] = []
loads: list[dict[str, int]] = []
load = session.load_base


def live_bytes() -> int:
    """Bytes of all tensors that Python holds, each once."""
    tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.device.type != "meta"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def noted(*arguments: Any, **named: Any) -> Any:
    alive = sum(reference() is not None for reference in loaded_before)
    loads.append({"models": alive, "bytes": live_bytes()})
    speech_llm = load(*arguments, **named)
    loaded_before.append(weakref.ref(speech_llm.model))
    return speech_llm


if __name__ == "__main__":
    session.load_base = noted  # type: ignore[assignment]
    for path in map(Path, sys.argv[2:]):
        config = load_config(path)
        loads.clear()
        loaded_before.clear()
        assert train(config).finished
        evaluate(config)
        name = f"{path.parent.name}-rank-{os.environ['RANK']}.json"
        (Path(sys.argv[1]) / name).write_text(json.dumps(loads))
