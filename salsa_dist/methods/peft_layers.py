"""PEFT's modules in place of linear ones, in the layers of a run's sites: LoRA and BEFT.

    Lora.install(method, model, layers, seed)     {"….v_proj.lora_A.default.weight": …}

`OnLinear` is what both are; their own files say only what differs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.methods.base import BaseParts
from salsa_dist.methods.tuned import Tuned


class OnLinear(Tuned):
    """A method of PEFT's, on the linear modules that its `targets` name.

    Attributes:
        mark: is in the names of its parameters.
    """

    mark: ClassVar[str]

    @classmethod
    @abstractmethod
    def peft_config(cls, method: Any) -> Callable[..., Any]:
        """What makes PEFT's config from `target_modules`.

        Raises:
            UserError: the installed PEFT, if any, does not have the method.
        """

    @classmethod
    def unfit(cls, method: Any, components: Collection[str], base: BaseParts, dtype: str) -> list[str]:
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
        return self.install(self.config.method, model, layers, seed)

    @classmethod
    @contextmanager
    def install(
        cls, method: Any, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> Iterator[dict[str, nn.Parameter]]:
        """The method's parameters in `model`, trainable and fp32, until the block ends; at first they
        do nothing.

        Args:
            method: its settings.
            model: a frozen base, whole on this rank.
            layers: the layers of the run's sites, by site.
            seed: of what is drawn, such as LoRA's first factor.

        Yields:
            the trainable parameters by name.

        Raises:
            UserError: the layers have no such modules, or PEFT is not installed.
        """
        make = cls.peft_config(method)
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(make(target_modules=targets), model)
        model.eval()
        found = {name: p for name, p in model.named_parameters() if cls.mark in name}
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
