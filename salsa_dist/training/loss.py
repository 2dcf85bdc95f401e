"""The loss: cross-entropy of each label or the family's own, with the sample's own adapter on.

What `Job._passes` (job.py) does with it:

losses = token_losses(base, batch)    (labels,) fp32
losses = losses * label_weights(batch, losses)
losses.sum().backward()               reaches what the job trains and nothing else
base.after_backward()

An adapter's gradient is then divided by the sum of the weights of its labels on all ranks: a clip of
weight 2 counts as if it were in the step twice, one of weight 0 as if it were not in it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.family import OwnLoss


def token_losses(base: FrozenBase, batch: AdapterBatch) -> Tensor:
    """The loss of each label of `batch`, (labels,) fp32. Labels are summed, never averaged, here:
    the mean is over the labels of all ranks (`reduce_step` of `optimizer.py`)."""
    logits = base.logits(batch)
    if isinstance(base.family, OwnLoss):
        return base.family.losses(logits, batch)
    return cross_entropy(logits.float(), batch.labels.to(logits.device), reduction="none")


def label_weights(batch: AdapterBatch, losses: Tensor) -> Tensor:
    """(labels,) fp32, the weight of each label's clip: what its loss is multiplied by, and what it
    counts as in the mean."""
    own = batch.label_weights
    return torch.ones_like(losses) if own is None else own.to(losses.device)
