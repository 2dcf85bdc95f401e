"""Learning rates relative to the activations that the vectors are added to (`training.lr_scale: auto`).

    first clips of an adapter ─► unsteered passes ─► size per site ─► multiplier of the site's rate

Measured before step 0 and kept in the state, so that a resumed run goes on with the same rates.
Adapters that take the same clips share a measurement, and shard groups divide the measurements. Sizes
are rounded: the last bits of a pass depend on the number of threads, and rates must not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.speech_llms.activations import activation_sizes
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.training.batches import StepBatches

CLIPS = 8  # per adapter: on Whisper-base the sizes are within 3% of those of 48 clips
DIGITS = 2


def relative_rates(
    speech_llm: SpeechLLM, base: FrozenBase, batches: StepBatches, moved: Callable[[], None]
) -> list[dict[str, float]]:
    """Multiplier per site, for each adapter in row order. All ranks call this and get the same.

    Args:
        moved: called before clips are read, and before they are processed.
    """
    draws, sites, ranks = batches.draws(), list(base.bank.sites), base.ranks
    count = max(draws) + 1
    groups, group = ranks.world_size // base.size, ranks.rank // base.size
    sizes = torch.zeros(count, len(sites), dtype=torch.float64, device=ranks.device)
    for turn in range(math.ceil(count / groups)):
        # As many passes on every rank: DeepSpeed compares what ranks run.
        draw = min(turn * groups + group, count - 1)
        moved()
        clips = batches.first_clips(draw, CLIPS)
        clips = [clips[i % len(clips)] for i in range(CLIPS)]
        moved()
        found = activation_sizes(speech_llm, clips, sites, ranks.device)
        sizes[draw] = torch.tensor([_rounded(found[site]) for site in sites])
    dist.all_reduce(sizes, op=dist.ReduceOp.MAX)
    by_draw = [dict(zip(sites, own, strict=True)) for own in sizes.tolist()]
    return [by_draw[draw] for draw in draws]


def _rounded(size: float) -> float:
    # A layer whose output is zero or not finite tells nothing: its rate stays as it is.
    return float(f"{size:.{DIGITS}g}") if math.isfinite(size) and size > 0 else 1.0
