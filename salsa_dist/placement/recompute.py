"""Activation checkpointing: recompute a layer's inner activations in the backward pass.

    layer(x)  =  hooks before ─► forward ─► hooks after (steering)
                                 └─ only this is made again

Only what is between the hooks is repeated, so a layer's output is steered once. A site inside the
layer is steered again, each element by the row that it had. It works on whatever layers were found,
and needs no train(): that would switch on dropout and let BatchNorm learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from salsa_dist.steering.bank import Bank


def recompute_in_backward(layers: Iterable[nn.Module], bank: Bank) -> Callable[[], None]:
    """Checkpoint the activations of `layers`, which `bank` steers; returns what undoes it."""
    wrapped = list(layers)
    for layer in wrapped:
        layer.forward = _checkpointed(layer.forward, bank)

    def undo() -> None:
        for layer in wrapped:
            layer.__dict__.pop("forward", None)  # the class's own is seen again

    return undo


def _checkpointed(forward: Callable[..., Any], bank: Bank) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        again = bank.rows_as_now()
        # The base uses no random numbers: it is in eval mode.
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), again()),
            **kwargs,
        )

    return run
