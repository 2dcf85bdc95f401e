"""bitsandbytes behind its linear layers: what it keeps beside a weight, and what it warns of."""

from __future__ import annotations

import logging
from typing import Any

import torch


def kept_beside(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """The scales of a quantised weight, which are no parameters of the model; none: it has none.

    Assumes that a weight of 4 bits holds them in `quant_state` (`absmax`, `code`), one of 8 bits in
    `SCB`, until its layer first runs.

    Seen: bitsandbytes 0.50.
    Else: the base's bytes in logs and reports lack the scales.
    Test: test_a_weight_knows_its_scales
    """
    state: Any = getattr(parameter, "quant_state", None)
    found = [getattr(parameter, "SCB", None), getattr(state, "absmax", None)]
    found.append(getattr(state, "code", None))
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


def quiet() -> None:
    """Hold back what its 8-bit layers say at each call in another precision than float16.

    Assumes that they say it through the logger of `bitsandbytes.autograd._functions`.

    Seen: bitsandbytes 0.50.
    Else: a line is printed for each layer and step.
    Test: test_an_8_bit_layer_says_nothing
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_as_loaded(model: torch.nn.Module) -> None:
    """Have 4-bit layers on a CPU compute alike with and without gradients.

    Assumes that a layer packs its weight anew, with scales in bfloat16, at its first pass without
    gradients, on CPUs that have AVX512-BF16, as `support_avx512bf16_for_cpu` says. What a run learns
    would depend on what was decoded before, and widths that are no multiple of 64 fail.

    Seen: bitsandbytes 0.50.
    Else: nothing is set, and a resumed run on such a CPU may differ by rounding.
    Test: test_a_4_bit_layer_keeps_its_weight
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
