"""Trains a config with room for three clips per pass on rank 1, for `test_out_of_memory.py`.

The error is torch's own, raised on purpose after the gradients of the pass are there.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from salsa_dist import load_config, train
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.speech_llms.batch import AdapterBatch


@contextmanager
def room_for(clips: int, error: RuntimeError | None = None) -> Iterator[list[int]]:
    """Passes of more than `clips` clips are out of memory in backward; how many clips each pass had."""
    whole, passes = FrozenBase.logits, []

    def logits(self: FrozenBase, batch: AdapterBatch) -> Tensor:
        made = whole(self, batch)
        passes.append(len(batch.keys))
        if len(batch.keys) > clips:
            made.sum().backward()  # gradients that must not count
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return made

    FrozenBase.logits = logits  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        FrozenBase.logits = whole  # type: ignore[method-assign]


if __name__ == "__main__":
    os.environ["SALSA_FAILURE_FILE"] += os.environ["RANK"]  # as a launcher does
    with room_for(clips=3) if os.environ["RANK"] == "1" else nullcontext():
        train(load_config(sys.argv[1]))
