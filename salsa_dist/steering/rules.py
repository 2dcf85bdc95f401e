"""The two update rules: how a steering vector changes an activation.

    salsa   s = h + v,  h' = s * (|h| / |s|)     turns the activation, keeps its norm
    add     h' = h + v

`salsa` is the update of SALSA (arXiv 2606.00460) as secondary sources give it; the norms are taken
over the hidden dimension, for each position by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this norm a row counts as zero: no direction to turn. It also keeps 1/|s| finite in backward.
_TINY = 1e-20


def add(hidden: Tensor, vector: Tensor) -> Tensor:
    """`h + v`, in the activation's dtype.

    Args:
        hidden: activations, (..., hidden).
        vector: steering vectors in fp32, broadcastable to `hidden`.
    """
    return (hidden + vector).to(hidden.dtype)


def salsa(hidden: Tensor, vector: Tensor) -> Tensor:
    """`(h + v) * |h| / |h + v|`: the direction moves, the norm stays.

    With `vector` all zero the result is `hidden` to the bit: both norms are then the same number and
    their ratio, made first and in fp32, is exactly 1. A row of `hidden` that is all zero stays so,
    and sends no gradient to the vector.

    Args:
        hidden: activations, (..., hidden).
        vector: steering vectors in fp32, broadcastable to `hidden`.
    """
    steered = hidden + vector  # fp32, since the vector is
    before = _squared_norm(hidden)
    # Clamped before the root: its slope at zero is infinite, and an infinite slope in the branch that
    # `where` does not take still makes NaN gradients.
    ratio = (before.clamp_min(_TINY) / _squared_norm(steered).clamp_min(_TINY)).sqrt()
    turned = (steered * ratio).to(hidden.dtype)
    return torch.where(before > _TINY, turned, hidden)


def _squared_norm(x: Tensor) -> Tensor:
    x = x.float()
    return (x * x).sum(-1, keepdim=True)


RULES = {"salsa": salsa, "add": add}
