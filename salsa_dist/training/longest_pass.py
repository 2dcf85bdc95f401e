"""A pass of the longest clips before the first step: a device that is too small shows at once.

Its gradients are thrown away and it changes no clip's place, so a run learns the same with and without
it. Where it is out of memory, passes are halved as in a step. It is made where memory is a device's
own; not with shared clips or a prefix cache, whose passes hold fewer of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.reading import read_clip
from salsa_dist.data.shards import BadSample
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.training.batches import StepBatches

_TRIED = 4  # clips of an adapter: the longest may be damaged


def shows_at_once(device: torch.device) -> bool:
    """Whether a pass that is too large fails on `device`, rather than slows the machine down."""
    return device.type == "cuda"


def longest_pass(batches: StepBatches, step: int) -> AdapterBatch | None:
    """A pass as large as any of `step`, of the longest clip alone; None where clips are shared.

    Every rank gets one, whatever it could read, since ranks that share a base run the same passes.
    """
    if batches.share or not batches.active(step):
        return None
    clip = _longest(batches, step)
    clips = batches.largest_pass(step, clip.seconds)
    rows = batches.active(step)
    # Told apart by their keys, as the clips of a pass are.
    pretended = [replace(clip, key=f"{clip.key}#{i}", row=rows[i % len(rows)]) for i in range(clips)]
    return batches.family.training_batch(pretended)


def _longest(batches: StepBatches, step: int) -> Clip:
    found: list[Clip] = []
    for row in batches.active(step):
        own = batches.adapters[row]
        for shard, entry in own.plan.longest(_TRIED):
            try:
                clip = read_clip(batches.folder, shard, entry)
                batches.family.training_batch([clip])
            except (BadSample, UserError):
                continue
            found.append(clip)
            break
    return max(found, key=lambda clip: clip.seconds, default=silent_clip(own.languages[0]))
