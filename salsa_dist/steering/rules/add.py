"""`add`: the vector is added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salsa_dist.steering.rules.rule import UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


def add(hidden: Tensor, vector: Tensor) -> Tensor:
    """`h + v`, in the activation's dtype.

    Args:
        hidden: activations, (..., hidden).
        vector: steering vectors in fp32, broadcastable to `hidden`.
    """
    return (hidden + vector).to(hidden.dtype)


ADD = UpdateRule(add, "h' = h + v", affine=lambda vector: (None, vector))
