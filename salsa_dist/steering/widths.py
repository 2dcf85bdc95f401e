"""The output width of each layer, read from its weights: no forward pass, so shared bases work too.

layer
├── self_attn          q_norm (head size), k_norm
├── input_layernorm    (hidden,)   <- the norm nearest the layer's top is as wide as its output
└── mlp
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.deepspeed import true_shape


def site_widths(layers: Mapping[str, nn.ModuleList]) -> dict[str, int]:
    """Width of every site.

    Args:
        layers: the layer list of each component, as `find_layers` gives it.
    """
    return {
        f"{component}.{i}": output_width(layer)
        for component, stack in layers.items()
        for i, layer in enumerate(stack)
    }


def output_width(layer: nn.Module) -> int:
    """Size of the last dimension of a transformer or conformer layer's output.

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
    if not found:
        raise UserError(
            f"the width of {type(layer).__name__} is unknown: it has no LayerNorm or RMSNorm with a "
            "weight; this base's layers are of a shape that is not known yet"
        )
    return min(reversed(found), key=lambda entry: entry[0])[1]
