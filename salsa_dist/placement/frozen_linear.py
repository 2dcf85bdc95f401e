"""Linear layers of a frozen base under ZeRO-3: backward needs the weight, never the layer's input.

    torch.nn.functional.linear(x, W, b)      W partitioned between uses, gathered around forward and backward
      torch's own     keeps W as it was gathered: the base would stay whole until backward
      DeepSpeed's     keeps W's handle, and x for a gradient of W that nobody asks for
      this one        keeps W's handle

What it saves is half of the activations of a transformer layer (`benchmarks/memory_and_load.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from salsa_dist.libraries.deepspeed import gathered, owner_of


class _Linear(torch.autograd.Function):
    """x Wᵀ + b with a gradient for x alone.

    W is kept as an attribute: what `save_for_backward` holds is its data of now under saved-tensor hooks,
    as activation checkpointing uses them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plain: Any) -> Tensor:
        ctx.owner = owner_of(weight)
        ctx.place = (weight.shape, weight.stride(), weight.storage_offset())
        out: Tensor = plain(x, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with gathered(ctx.owner):
            return gradient.matmul(ctx.owner.data.as_strided(*ctx.place)), None, None, None


class FrozenLinear:
    """`torch.nn.functional.linear` for the time in which partitioned bases are there.

    Models look it up at each call. A weight that is not partitioned goes to torch's own.
    """

    _bases = 0
    _plain = staticmethod(torch.nn.functional.linear)

    @classmethod
    def enter(cls) -> None:
        """One more base is partitioned."""
        if not cls._bases:
            cls._plain = staticmethod(torch.nn.functional.linear)
            torch.nn.functional.linear = cls._linear
        cls._bases += 1

    @classmethod
    def leave(cls) -> None:
        """A base is closed; after the last one torch's own function is back."""
        cls._bases -= 1
        if not cls._bases:
            torch.nn.functional.linear = cls._plain

    @classmethod
    def _linear(cls, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad and owner_of(weight) is not None:
            out: Tensor = _Linear.apply(input, weight, bias, cls._plain)
            return out
        return cls._plain(input, weight, bias)
