"""Low-rank updates `W + B A alpha / rank` of linear weights (Hu et al., arXiv 2106.09685), by PEFT."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from salsa_dist.config import AdapterSettings, LoraMethod
from salsa_dist.errors import UserError
from salsa_dist.methods.base import BaseParts, among
from salsa_dist.methods.tuned import Tuned


class Lora(Tuned):
    """PEFT's LoRA in the layers of the sites."""

    section = LoraMethod
    title = "LoRA"

    @classmethod
    def label(cls, method: LoraMethod, adapter: AdapterSettings) -> str:
        where = f"{', '.join(method.targets)} of {adapter.sites}"
        return f"LoRA r={method.rank} on {where}{among(adapter)}"

    @classmethod
    def unfit(
        cls, method: LoraMethod, components: Collection[str], base: BaseParts, dtype: str
    ) -> list[str]:
        problems = []
        there = {name for component in components for name in base.linear[component]}
        if lacking := [t for t in method.targets if t not in there]:
            problems.append(
                f": these layers have no linear {', '.join(lacking)}; they have "
                + ", ".join(sorted(there))
            )
        if find_spec("peft") is None:
            problems.append(" needs PEFT: pip install 'salsa-dist[baselines]'")
        return problems

    def installed(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        assert isinstance(self.config.method, LoraMethod)
        return install(self.config.method, model, layers, seed)


@contextmanager
def install(
    method: LoraMethod, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    """LoRA's factors in `model`, trainable and fp32, until the block ends; at first they do nothing.

    Args:
        method: rank, alpha and targets.
        model: a frozen base, whole on this rank.
        layers: the layers of the run's sites, by site.
        seed: of the random first factor.

    Yields:
        the trainable parameters by name.

    Raises:
        UserError: the layers have no such weights, or PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as e:
        raise UserError("method lora needs PEFT: pip install 'salsa-dist[baselines]'") from e
    inside = {module for layer in layers.values() for module in layer.modules()}
    linear = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module in inside and isinstance(module, nn.Linear)
    }
    targets = [name for name, own in linear.items() if own in method.targets]
    if not targets:
        raise UserError(
            f"method.targets {', '.join(method.targets)}: the chosen layers have no such linear "
            f"modules; they have {', '.join(sorted(set(linear.values())))}"
        )
    config = LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    model.eval()
    found = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    try:
        yield found
    finally:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module.get_base_layer())
        del model.peft_config
