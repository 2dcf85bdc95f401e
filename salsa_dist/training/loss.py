"""The loss: cross-entropy of each label or the family's own, with the sample's own adapter on.

losses = token_losses(base, batch)    (labels,) fp32
losses.sum().backward()               reaches what the job trains and nothing else
base.after_backward()
"""

from __future__ import annotations

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
