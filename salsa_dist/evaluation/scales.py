"""Adapters decoded at other scales: every vector times a factor.

evaluation.scales: [0, 0.5, 1, 1.5]   0 is zero-shot and 1 the adapter itself: decoded in any case
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from salsa_dist.config import Config
from salsa_dist.errors import UserError
from salsa_dist.steering.bank import Bank


def other_scales(config: Config) -> list[float]:
    """The scales that no other part of an evaluation decodes.

    Raises:
        UserError: the method has no vectors.
    """
    scales = config.evaluation.scales
    if scales and not config.method.steers:
        raise UserError(
            f"evaluation.scales: method {config.method.kind} has no vectors to scale: remove it"
        )
    there = {1.0, 0.0} if config.evaluation.zero_shot else {1.0}
    return [scale for scale in dict.fromkeys(scales) if scale not in there]


@contextmanager
@torch.no_grad()
def scaled(bank: Bank, scale: float) -> Iterator[None]:
    """Inside the block, every vector of `bank` is `scale` times as long."""
    own = [block.values.clone() for block in bank.blocks]
    for block in bank.blocks:
        block.values.mul_(scale)
    try:
        yield
    finally:
        for block, values in zip(bank.blocks, own, strict=True):
            block.values.copy_(values)
