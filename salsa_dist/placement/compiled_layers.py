"""Frozen layers compiled by torch.compile (`training.compile: layers`).

    layer(x)  =  hooks before ─► forward ─► hooks after (steering)
                                 └─ only this is compiled, for passes that go back

Layers of one kind share their kernels. Passes without gradients, such as decoding, run as they are:
their shapes change with each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.torch import compile_in_this_process


def compile_layers(layers: Iterable[nn.Module]) -> Callable[[], None]:
    """Compile the forward passes of `layers`; returns what undoes it."""
    changed = list(layers)
    for layer in changed:
        layer.forward = _compiled(layer.forward)

    def undo() -> None:
        for layer in changed:
            layer.__dict__.pop("forward", None)  # the class's own is seen again

    return undo


def prepare_compiler(device: torch.device) -> None:
    """Set torch.compile up, and compile a trifle for `device` before anything depends on it.

    Kernels are compiled in this process: a signal ahead of a time limit goes to all processes of a
    rank, and would end the compiler's.

    Raises:
        UserError: torch.compile makes no kernel here.
    """
    compile_in_this_process()
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # of the compiler's own kinds, and of what it starts
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"training.compile: torch.compile makes no kernel for {device} here ({reason}): it needs a "
            "C++ compiler, and Triton on a GPU; or set it to off"
        ) from error


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    kernel = torch.compile(forward, dynamic=True)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (kernel if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return run
