"""The update rules: how a steering vector changes an activation.

    salsa   s = h + v,  h' = s * (|h| / |s|)     turns the activation, keeps its norm
    add     h' = h + v

`salsa` is the update of SALSA (arXiv 2606.00460) as secondary sources give it; the norms are taken
over the hidden dimension, for each position by itself.

A further rule is a function here and a line in `RULES`; configs, banks and adapters then know its name.
In a bank of several rules each is applied to every sample and the right result taken, so a rule must
give finite numbers and gradients for any activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from salsa_dist.errors import UserError

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
    steered: Tensor = _Salsa.apply(hidden, vector)
    return steered


class _Salsa(torch.autograd.Function):
    """`salsa` with a backward pass of its own, which keeps the activation it is given and no other.

    With b = |h|, n = |s|, h' = s b / n and a gradient g of h':

        of s    b / n (g - s (g · s) / n²)
        of h    that of s, and h (g · s) / (n b), since b is the norm of h
        of v    that of s, where h has a direction

    The result is not kept in its place, though the layer above keeps it anyway: some models write into
    it, as Granite-Speech does between its encoder's halves.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vector: Tensor) -> Tensor:
        fp32 = torch.promote_types(hidden.dtype, torch.float32)
        before = vector_norm(hidden, dim=-1, keepdim=True, dtype=fp32)
        # A row without a direction gets no vector, so its norms are equal and its ratio is 1. Masking
        # the vector costs one pass over the activation; choosing between two results would cost two.
        turns = before > _TINY
        steered = torch.addcmul(hidden, vector, turns.to(fp32))  # fp32, since the vector is
        after = vector_norm(steered, dim=-1, keepdim=True)
        # Clamped before the division: a slope of 1/0, even times nothing, is NaN.
        out = (steered * (before.clamp_min(_TINY) / after.clamp_min(_TINY))).to(hidden.dtype)
        ctx.save_for_backward(hidden, vector, before, after)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, vector, before, after = ctx.saved_tensors
        turns = (before > _TINY).to(before.dtype)
        b, n = before.clamp_min(_TINY), after.clamp_min(_TINY)
        g = gradient.to(before.dtype)
        steered = torch.addcmul(hidden, vector, turns)
        along = (g * steered).sum(-1, keepdim=True)
        # A norm that is clamped has no slope.
        of_steered = torch.addcmul(g, steered, along / n.square() * (after > _TINY), value=-1) * (b / n)
        of_hidden = of_vector = None
        if ctx.needs_input_grad[0]:
            of_hidden = torch.addcmul(of_steered, hidden, along / (n * b) * turns).to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            of_vector = (of_steered * turns).sum_to_size(vector.shape).to(vector.dtype)
        return of_hidden, of_vector


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
