"""Every bias in the layers of the sites (Ben Zaken et al., BitFit, arXiv 2106.10199)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from salsa_dist.config import AdapterSettings, BiasMethod
from salsa_dist.errors import UserError
from salsa_dist.methods.base import BaseParts, among
from salsa_dist.methods.tuned import Tuned


class Bias(Tuned):
    """The base's own biases."""

    section = BiasMethod
    title = "biases"

    @classmethod
    def label(cls, method: BiasMethod, adapter: AdapterSettings) -> str:
        return f"biases of {adapter.sites}{among(adapter)}"

    @classmethod
    def unfit(
        cls, method: BiasMethod, components: Collection[str], base: BaseParts, dtype: str
    ) -> list[str]:
        if not set(components) & set(base.biased):
            return [": these layers have no biases"]
        return [] if dtype == "float32" else [" trains in fp32: set base.dtype to float32"]

    def installed(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        return install(model, layers)


@contextmanager
def install(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Parameter]]:
    """The biases of `layers`, trainable inside the block; afterwards they have their old values.

    Raises:
        UserError: there are none, or not in fp32.
    """
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
    before = {name: p.detach().clone() for name, p in found.items()}
    for parameter in found.values():
        parameter.requires_grad_(True)
    try:
        yield found
    finally:
        for name, parameter in found.items():
            parameter.requires_grad_(False).copy_(before[name])
            parameter.grad = None
