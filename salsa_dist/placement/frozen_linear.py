"""Linear layers of a frozen base under ZeRO-3: backward needs the weight, never the layer's input.

    torch.nn.functional.linear(x, W, b)          W is gathered around forward and around backward
    torch.nn.functional.grouped_mm(x, W, offs)   the same of a layer's experts
      torch's own     keep the gathered W: the whole base would stay on every rank until backward
      DeepSpeed's     keeps the parameter, and x for a gradient of W that nobody needs; linear alone
      these           keep the parameter

A parameter is empty between uses. DeepSpeed's way keeps 1.5 times the activations of a tiny Whisper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from salsa_dist.libraries.deepspeed import gathered, owner_of


class _Product(torch.autograd.Function):
    """A linear layer, or one per expert, with a gradient for its input alone.

    The weight is an attribute of the context. `save_for_backward` under hooks, as of activation
    checkpointing, would hold what is gathered.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, other: Tensor | None, grouped: bool) -> Tensor:
        ctx.owner = owner_of(weight)
        # What is gathered need not begin where its storage does.
        start = weight.storage_offset() - ctx.owner.storage_offset()
        ctx.view = (weight.shape, weight.stride(), start)
        ctx.offsets = other if grouped else None
        plain = FrozenLinear.plain
        out: Tensor = (
            plain["grouped_mm"](x, weight, offs=other) if grouped else plain["linear"](x, weight, other)
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with gathered(ctx.owner):
            shape, stride, start = ctx.view
            whole = ctx.owner.data
            weight = whole.as_strided(shape, stride, whole.storage_offset() + start)
            if ctx.offsets is None:
                return gradient.matmul(weight), None, None, None
            back = weight.transpose(-2, -1)
            product = FrozenLinear.plain["grouped_mm"]
            return product(gradient.contiguous(), back, offs=ctx.offsets), None, None, None


class FrozenLinear:
    """Both functions in place of torch's, for the time in which partitioned bases are there.

    Models look them up at each call. A weight that is not partitioned goes to torch's own.

    Attributes:
        plain: torch's own, by name.
    """

    plain: dict[str, Any] = {}  # noqa: RUF012 -- one for the process, as the functions are
    _bases = 0

    @classmethod
    def enter(cls) -> None:
        """One more base is partitioned."""
        cls._bases += 1
        if cls._bases == 1:
            for name, function in (("linear", _linear), ("grouped_mm", _grouped_mm)):
                if hasattr(torch.nn.functional, name):  # torch 2.10 brought grouped_mm
                    cls.plain[name] = getattr(torch.nn.functional, name)
                    setattr(torch.nn.functional, name, function)

    @classmethod
    def leave(cls) -> None:
        """A base is closed; after the last one torch's own functions are back."""
        cls._bases -= 1
        if cls._bases == 0:
            for name, function in cls.plain.items():
                setattr(torch.nn.functional, name, function)


def _of_frozen(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad and owner_of(weight) is not None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if _of_frozen(input, weight):
        out: Tensor = _Product.apply(input, weight, bias, False)
        return out
    plain: Tensor = FrozenLinear.plain["linear"](input, weight, bias)
    return plain


def _grouped_mm(mat_a: Tensor, mat_b: Tensor, *, offs: Tensor | None = None, **other: Any) -> Tensor:
    if offs is not None and not other and _of_frozen(mat_a, mat_b):
        out: Tensor = _Product.apply(mat_a, mat_b, offs, True)
        return out
    plain: Tensor = FrozenLinear.plain["grouped_mm"](mat_a, mat_b, offs=offs, **other)
    return plain
