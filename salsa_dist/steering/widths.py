"""The output width of each layer, read from its weights' shapes, so shared bases work too.

layer
├── self_attn          q_norm (head size), k_norm
├── input_layernorm    (hidden,)   <- the norm nearest the layer's top is as wide as its output
└── mlp

A layer whose norms have no weight is run, alone and on the meta device.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.deepspeed import true_shape
from salsa_dist.libraries.torch import forget_hooks
from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.sites import by_site, whole_layers


def site_widths(layers: Mapping[str, nn.ModuleList]) -> dict[str, int]:
    """Width of every site. A block's output is added to its layer's, so it is as wide.

    Args:
        layers: the layer list of each component, as `find_layers` gives it.
    """
    of_layer = {site: output_width(layer) for site, layer in whole_layers(layers).items()}
    return {site: of_layer[layer_of(site)] for site in by_site(layers)}


def output_width(layer: nn.Module) -> int:
    """Width of the output (last dimension) of a transformer or conformer layer.

    A residual layer normalises what it passes on. Norms deeper inside may be of a head or of an inner
    width, and BatchNorm is of a convolution's, so the outermost LayerNorm or RMSNorm is the one; of
    several the last, since an encoder's first layer may take an input of another width.
    """
    found: list[tuple[int, int]] = []
    for name, module in layer.named_modules():
        kind = type(module).__name__
        weight: Any = getattr(module, "weight", None)
        if "Norm" in kind and "Batch" not in kind and weight is not None:
            shape = true_shape(weight)
            if len(shape) == 1:
                found.append((name.count("."), int(shape[0])))
    if found:
        return min(reversed(found), key=lambda entry: entry[0])[1]
    width = _width_by_running(layer)
    if width is None:
        raise UserError(
            f"the width of {type(layer).__name__} is unknown: it has no LayerNorm or RMSNorm with a "
            "weight, and does not run alone; this base's layers are of a shape that is not known yet"
        )
    return width


def _width_by_running(layer: nn.Module) -> int | None:
    """Output width of a layer, run on the input of one of its linear maps; None: it does not run."""
    linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    widths = dict.fromkeys(int(true_shape(m.weight)[1]) for m in linears)
    twin = _on_meta(layer)
    for width in widths:
        try:
            output = twin(torch.empty(1, 2, width, device="meta"))
        except Exception:  # of any kind: the layer's code is not ours, and wants other arguments
            continue
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor):
            return int(hidden.shape[-1])
    return None


def _on_meta(layer: nn.Module) -> nn.Module:
    """A copy of `layer` with shapes and no numbers, and without hooks."""

    def shape(tensor: Tensor) -> Tensor:
        empty = torch.empty(true_shape(tensor), dtype=torch.float32, device="meta")
        return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty

    memo: dict[int, Any] = {id(t): shape(t) for t in [*layer.parameters(), *layer.buffers()]}
    twin = copy.deepcopy(layer, memo)
    forget_hooks(twin)
    return twin
