"""The rule `salsa` with a backward pass of its own, which keeps one activation per layer.

    turn(hidden, vector)                          out, |h|, |h + v|
    slopes(hidden, vector, …, gradient)           the gradients of both

`Salsa` runs them as they are, or compiled: as one kernel each, made by torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

# Below this norm a row counts as zero: no direction to turn. It also keeps 1/|s| finite in backward.
_TINY = 1e-10


def turn(hidden: Tensor, vector: Tensor, guarded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The steered activations, and the norms before and after, (..., 1) in fp32.

    Args:
        guarded: keep a row that no vector moves to the bit, also if its two norms are summed in
            different orders, as a compiler may.
    """
    fp32 = torch.promote_types(hidden.dtype, torch.float32)
    before = vector_norm(hidden, dim=-1, keepdim=True, dtype=fp32)
    # A row without a direction gets no vector, so its norms are equal and its ratio is 1. Masking
    # the vector costs one pass over the activation; choosing between two results would cost two.
    turns = before > _TINY
    steered = torch.addcmul(hidden, vector, turns.to(fp32))  # fp32, since the vector is
    after = vector_norm(steered, dim=-1, keepdim=True)
    # Clamped before the division: a slope of 1/0, even times nothing, is NaN.
    ratio = before.clamp_min(_TINY) / after.clamp_min(_TINY)
    if guarded:
        ratio = torch.where((steered != hidden).any(-1, keepdim=True), ratio, 1.0)
    return (steered * ratio).to(hidden.dtype), before, after


def slopes(
    hidden: Tensor,
    vector: Tensor,
    before: Tensor,
    after: Tensor,
    gradient: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of `hidden` and `vector`, those that are wanted.

    With b = |h|, n = |s|, h' = s b / n and a gradient g of h':

        of s    b / n (g - s (g · s) / n²)
        of h    that of s, and h (g · s) / (n b), since b is the norm of h
        of v    that of s, where h has a direction
    """
    turns = (before > _TINY).to(before.dtype)
    b, n = before.clamp_min(_TINY), after.clamp_min(_TINY)
    g = gradient.to(before.dtype)
    steered = torch.addcmul(hidden, vector, turns)
    along = (g * steered).sum(-1, keepdim=True)
    # A norm that is clamped has no slope.
    of_steered = torch.addcmul(g, steered, along / n.square() * (after > _TINY), value=-1) * (b / n)
    of_hidden = of_vector = None
    if wanted[0]:
        of_hidden = torch.addcmul(of_steered, hidden, along / (n * b) * turns).to(gradient.dtype)
    if wanted[1]:
        of_vector = (of_steered * turns).sum_to_size(vector.shape).to(vector.dtype)
    return of_hidden, of_vector


class Salsa(torch.autograd.Function):
    """`salsa`, with a backward pass that keeps the activation it is given and no other.

    The result is not kept in its place, though the layer above keeps it anyway: some models write into
    it, as Granite-Speech does between its encoder's halves.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vector: Tensor, compiled: bool) -> Tensor:
        run = _compiled(turn) if compiled else turn
        out, before, after = run(hidden, vector, guarded=compiled)
        ctx.save_for_backward(hidden, vector, before, after)
        ctx.compiled = compiled
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, vector, before, after = ctx.saved_tensors
        run = slopes
        if ctx.compiled:  # a kernel is of one layout
            run, gradient = _compiled(slopes), gradient.contiguous()
        wanted = ctx.needs_input_grad[:2]
        of_hidden, of_vector = run(hidden, vector, before, after, gradient, wanted)
        return of_hidden, of_vector, None


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # One kernel for any number of clips and positions.
    return torch.compile(function, dynamic=True)
