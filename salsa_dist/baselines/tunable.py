"""The weights that a rival method trains inside the layers that a run's sites name.

    install(LoraMethod(rank=8), model, layers, seed)  ->  {"…self_attn.q_proj.lora_A.…": Parameter, …}
    install(BiasMethod(), model, layers, seed)        ->  {"…fc1.bias": Parameter, …}

Which layers: the same words as for steering (`encoder`, `encoder:last-half+llm`). All of them are fp32,
as steering vectors are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from salsa_dist.config import BiasMethod, LoraMethod
from salsa_dist.errors import UserError


def install(
    method: LoraMethod | BiasMethod, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
) -> dict[str, nn.Parameter]:
    """Make the method's weights trainable in `model`, in place, and nothing else.

    Args:
        method: which weights.
        model: a frozen base, whole on this rank.
        layers: the layers of the run's sites, by site.
        seed: of LoRA's random first factor.

    Returns:
        the trainable parameters by name. Before training they change no output.

    Raises:
        UserError: the layers have no such weights, or PEFT is not installed.
    """
    if isinstance(method, LoraMethod):
        return _lora(method, model, layers, seed)
    return _biases(model, layers)


def _lora(
    method: LoraMethod, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
) -> dict[str, nn.Parameter]:
    """Low-rank updates `W + B A alpha / rank` (Hu et al., arXiv 2106.09685), by PEFT."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("method lora needs PEFT: pip install 'salsa-dist[baselines]'") from None
    inside = {module for layer in layers.values() for module in layer.modules()}
    targets = [
        name
        for name, module in model.named_modules()
        if module in inside
        and isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in method.targets
    ]
    if not targets:
        linear = {
            name.rpartition(".")[2]
            for layer in layers.values()
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        raise UserError(
            f"method.targets {', '.join(method.targets)}: the chosen layers have no such linear "
            f"modules; they have {', '.join(sorted(linear))}"
        )
    config = LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    model.eval()
    found = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def _biases(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every bias of the layers (Ben Zaken et al., BitFit, arXiv 2106.10199)."""
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    found = {
        name: p
        for name, p in model.named_parameters()
        if id(p) in inside and name.rpartition(".")[2] == "bias"
    }
    if not found:
        raise UserError("method bias: the layers of these sites have no biases")
    for parameter in found.values():
        if parameter.dtype != torch.float32:
            raise UserError("method bias trains in fp32: set base.dtype to float32")
        parameter.requires_grad_(True)
    return found
