"""The two update rules: how a steering vector changes an activation.

    salsa   s = h + v,  h' = s * (|h| / |s|)     turns the activation, keeps its norm
    add     h' = h + v

`salsa` is the update of SALSA (arXiv 2606.00460) as secondary sources give it; the norms are taken
over the hidden dimension, for each position by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

# Below this norm a row counts as zero: no direction to turn. It also keeps 1/|s| finite in backward.
_TINY = 1e-10


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
    fp32 = torch.promote_types(hidden.dtype, torch.float32)
    before = vector_norm(hidden, dim=-1, keepdim=True, dtype=fp32)
    # A row without a direction gets no vector, so its norms are equal and its ratio is 1. Masking the
    # vector costs one pass over the activation; choosing between two results would cost two more.
    steered = torch.addcmul(hidden, vector, (before > _TINY).to(fp32))  # fp32, since the vector is
    # Clamped before the division: a slope of 1/0, even times nothing, is NaN.
    ratio = before.clamp_min(_TINY) / vector_norm(steered, dim=-1, keepdim=True).clamp_min(_TINY)
    return (steered * ratio).to(hidden.dtype)


RULES = {"salsa": salsa, "add": add}
