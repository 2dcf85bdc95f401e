"""A base whose linear weights are quantised: while it is loaded, or in its checkpoint already.

kind    by            a weight of n numbers     computed in
int8    torchao       n bytes, a scale a row    the base's precision; weights only
bnb8    bitsandbytes  n bytes, a scale a row    int8: activations are quantised too (LLM.int8)
nf4     bitsandbytes  n/2 bytes, a scale for    the base's precision; weights only
                      64 numbers

The head, embeddings, convolutions, norms and biases keep the base's precision. Steering vectors are
fp32 as on any base, and their gradients pass through the quantised weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.libraries import bitsandbytes as bitsandbytes_library
from salsa_dist.libraries import torchao as torchao_library
from salsa_dist.libraries.transformers import quantized_weights

# Bytes of one number, scales left out.
BYTES_EACH = {"int8": 1.0, "bnb8": 1.0, "nf4": 0.5}
_BLOCK = 64  # numbers that share a scale in nf4
# By kind, the library that does it.
LIBRARIES = {"int8": "torchao", "bnb8": "bitsandbytes", "nf4": "bitsandbytes"}


def own_method(config: Any) -> str | None:
    """The method that a checkpoint is quantised by, as its config.json says; None: it is not."""
    own = getattr(config, "quantization_config", None)
    if own is None:
        return None
    tree = own if isinstance(own, dict) else own.to_dict()
    return str(tree.get("quant_method", "unknown"))


def refuse_twice(name: str, kind: str | None, own: str | None) -> None:
    """Refuse to quantise what is quantised.

    Args:
        name: of the base.
        kind: int8, bnb8, nf4; None: as it is.
        own: see `own_method`.

    Raises:
        UserError: it is quantised already, or there is no such kind.
    """
    if kind is not None and kind not in LIBRARIES:
        raise UserError(f"quantization {kind} is not known: choose {', '.join(LIBRARIES)}")
    if kind is not None and own is not None:
        raise UserError(
            f"base {name} is quantised already ({own}): leave out base.quantization, here {kind}"
        )


def loading(
    kind: str | None, own: str | None, device: torch.device, precision: torch.dtype
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a quantised base; {}: it is not.

    Args:
        kind, own: as in `refuse_twice`.
        device: where its weights go; a quantised base is not moved.
        precision: of what is not quantised, and of arithmetic.

    Raises:
        UserError: the library of `kind` is not installed.
    """
    if kind is None and own is None:
        return {}
    if kind is not None and find_spec(library := LIBRARIES[kind]) is None:
        raise UserError(
            f"base.quantization {kind} needs {library}: pip install 'salsa-dist[quantization]'"
        )
    bitsandbytes_library.quiet()
    torchao_library.quiet()
    config: Mapping[str, Any] = {} if kind is None else {"quantization_config": _KINDS[kind](precision)}
    return {"device_map": {"": str(device)}, **config}


def _int8(precision: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _bnb8(precision: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _nf4(precision: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=precision
    )


_KINDS: dict[str, Callable[[torch.dtype], Any]] = {"int8": _int8, "bnb8": _bnb8, "nf4": _nf4}


def bytes_of(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers as they lie in memory, scales with them."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        tensors += bitsandbytes_library.kept_beside(parameter)
    return sum(_bytes(tensor) for tensor in tensors)


def _bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.numel() * tensor.element_size())
    inner, _ = tensor.__tensor_flatten__()  # torch's protocol of tensors that are made of others
    return sum(_bytes(getattr(tensor, name)) for name in inner)


def planned_bytes(model: nn.Module, kind: str) -> dict[str, int]:
    """Of a model on the meta device, by name, bytes of each weight that `kind` would quantise."""
    found = {}
    for name in quantized_weights(model):
        weight = model.get_parameter(name)
        rows, count = weight.shape[0], weight.numel()
        found[name] = {
            "int8": count + rows * (weight.element_size() + 1),  # a scale and a zero point
            "bnb8": count + 4 * rows,
            "nf4": -(-count // 2) + 4 * -(-count // _BLOCK) + 64,  # and the 16 numbers of its code
        }[kind]
    return found
