"""What an update rule must say of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UpdateRule:
    """One rule.

    In a bank of several rules each is applied to every sample and the right result taken, so a rule
    must give finite numbers and gradients for any activation.

    Attributes:
        apply: takes activations (..., hidden) and an adapter's fp32 numbers (..., parts * hidden),
            broadcastable to them; gives the steered activations in the same shape and dtype. Numbers
            that are all zero must change no bit.
        formula: for model cards.
        does: what no plain addition does, to follow the rule's name in a refusal; empty: it only adds.
        parts: numbers per channel. The first is in the activation's units, and its learning rate is
            relative to the activation's size; the others have no unit.
        keeps_norm: whether the norm of every activation stays.
        affine: for h' = a · h + b: takes the numbers of a site, (parts * hidden,), gives a and b,
            (hidden,) each, a being None where it is 1; None: the rule is of no such form.
        lr: the learning rate where the config names none, relative to the activation's size.
        compiled: `apply` in one kernel (`training.compile`); None: there is nothing to fuse.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    formula: str
    does: str = ""
    parts: int = 1
    keeps_norm: bool = False
    affine: Callable[[Tensor], tuple[Tensor | None, Tensor]] | None = None
    lr: float = 0.05
    compiled: Callable[[Tensor, Tensor], Tensor] | None = None
