"""The update rules: how a steering vector changes an activation.

    salsa   s = h + v,  h' = s * (|h| / |s|)     turns the activation, keeps its norm
    add     h' = h + v

`salsa` is the update of SALSA (arXiv 2606.00460) as secondary sources give it; the norms are taken
over the hidden dimension, for each position by itself.

A further rule is a function here and a line in `RULES`; configs, banks and adapters then know its name.
Configs are also read where nothing is computed, by the launcher, so torch is not imported here.
In a bank of several rules each is applied to every sample and the right result taken, so a rule must
give finite numbers and gradients for any activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salsa_dist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


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
    from salsa_dist.steering.salsa_function import Salsa

    steered: Tensor = Salsa.apply(hidden, vector)
    return steered


@dataclass(frozen=True)
class UpdateRule:
    """One rule.

    Attributes:
        apply: takes activations (..., hidden) and fp32 vectors broadcastable to them; gives the steered
            activations in the same shape and dtype. A zero vector must change no bit.
        formula: for model cards.
        keeps_norm: whether the norm of every activation stays.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    formula: str
    keeps_norm: bool = False


RULES = {
    "salsa": UpdateRule(salsa, "s = h + v, h' = s · |h| / |s|", keeps_norm=True),
    "add": UpdateRule(add, "h' = h + v"),
}


def rule_named(name: str) -> UpdateRule:
    """The rule of that name, or a `UserError` with those that are known."""
    if name not in RULES:
        raise UserError(f"unknown update rule {name!r}: known are {', '.join(RULES)}")
    return RULES[name]
