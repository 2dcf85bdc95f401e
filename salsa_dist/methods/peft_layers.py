"""PEFT's modules in the layers of a run's sites: what LoRA and BEFT share.

names = linear_names(model, layers, ["v_proj"])        model.encoder.layers.0.self_attn.v_proj, …
with injected(model, LoraConfig(…, target_modules=names), ".lora_", seed) as parameters: …
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.methods.base import BaseParts


def unfit_targets(targets: Sequence[str], components: Collection[str], base: BaseParts) -> list[str]:
    """Why these targets can't be trained, in words that follow a method's name; empty: they can."""
    problems = []
    there = {name for component in components for name in base.linear[component]}
    if lacking := [t for t in targets if t not in there]:
        problems.append(
            f": these layers have no linear {', '.join(lacking)}; they have " + ", ".join(sorted(there))
        )
    if find_spec("peft") is None:
        problems.append(" needs PEFT: pip install 'salsa-dist[baselines]'")
    return problems


def linear_names(
    model: nn.Module, layers: Mapping[str, nn.Module], targets: Sequence[str]
) -> list[str]:
    """The full names of the linear modules in `layers` whose own names are in `targets`.

    Raises:
        UserError: the layers have none.
    """
    inside = {module for layer in layers.values() for module in layer.modules()}
    linear = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module in inside and isinstance(module, nn.Linear)
    }
    found = [name for name, own in linear.items() if own in targets]
    if not found:
        raise UserError(
            f"method.targets {', '.join(targets)}: the chosen layers have no such linear "
            f"modules; they have {', '.join(sorted(set(linear.values())))}"
        )
    return found


@contextmanager
def injected(model: nn.Module, config: Any, mark: str, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """PEFT's parameters in `model`, trainable and fp32, until the block ends; at first they do nothing.

    Args:
        model: a frozen base, whole on this rank.
        config: of PEFT, with full names of modules as targets.
        mark: is in the names of its parameters.
        seed: of what it draws.

    Yields:
        the trainable parameters by name.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    model.eval()
    found = {name: p for name, p in model.named_parameters() if mark in name}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    try:
        yield found
    finally:
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module.get_base_layer())
        del model.peft_config
