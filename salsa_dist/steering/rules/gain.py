"""`gain`: each channel is scaled, then the vector is added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salsa_dist.steering.rules.rule import UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


def gain(hidden: Tensor, numbers: Tensor) -> Tensor:
    """`h · (1 + g) + v`, in the activation's dtype; both are zero at the start.

    Args:
        hidden: activations, (..., hidden).
        numbers: fp32, (..., 2 * hidden): the vector, then the gain of each channel.
    """
    vector, gains = numbers.chunk(2, dim=-1)
    return (hidden * (1 + gains) + vector).to(hidden.dtype)


def _affine(numbers: Tensor) -> tuple[Tensor, Tensor]:
    vector, gains = numbers.chunk(2, dim=-1)
    return 1 + gains, vector


GAIN = UpdateRule(
    gain, "h' = h · (1 + g) + v", does="scales each channel", parts=2, affine=_affine, lr=0.01
)
