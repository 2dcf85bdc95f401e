"""`salsa`: the activation is turned and keeps its norm.

It is the update of SALSA (arXiv 2606.00460) as secondary sources give it; the norms are taken over the
hidden dimension, for each position by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from salsa_dist.steering.rules.rule import UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


def salsa(hidden: Tensor, vector: Tensor) -> Tensor:
    """`(h + v) * |h| / |h + v|`: the direction moves, the norm stays.

    With `vector` all zero the result is `hidden` to the bit: both norms are then the same number and
    their ratio, made first and in fp32, is exactly 1. A row of `hidden` that is all zero stays so,
    and sends no gradient to the vector.

    Args:
        hidden: activations, (..., hidden).
        vector: steering vectors in fp32, broadcastable to `hidden`.
    """
    from salsa_dist.steering.rules.salsa_function import Salsa

    steered: Tensor = Salsa.apply(hidden, vector, False)
    return steered


def salsa_compiled(hidden: Tensor, vector: Tensor) -> Tensor:
    """`salsa` in one kernel; with `vector` all zero to the bit as well, else up to rounding."""
    from salsa_dist.steering.rules.salsa_function import Salsa

    steered: Tensor = Salsa.apply(hidden, vector, True)
    return steered


SALSA = UpdateRule(
    salsa,
    "s = h + v, h' = s · |h| / |s|",
    does="keeps the norm of each activation",
    keeps_norm=True,
    compiled=salsa_compiled,
)
