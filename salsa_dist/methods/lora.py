"""Low-rank updates `W + B A alpha / rank` of linear weights (Hu et al., arXiv 2106.09685), by PEFT."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from salsa_dist.config import AdapterSettings, LoraMethod
from salsa_dist.errors import UserError
from salsa_dist.methods.base import BaseParts, among
from salsa_dist.methods.peft_layers import injected, linear_names, unfit_targets
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
        return unfit_targets(method.targets, components, base)

    def installed(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        assert isinstance(self.config.method, LoraMethod)
        return install(self.config.method, model, layers, seed)


@contextmanager
def install(
    method: LoraMethod, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    """LoRA's factors in `model` until the block ends; see `injected`.

    Args:
        method: rank, alpha and targets.
        model: a frozen base, whole on this rank.
        layers: the layers of the run's sites, by site.
        seed: of the random first factor.

    Raises:
        UserError: the layers have no such weights, or PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as e:
        raise UserError("method lora needs PEFT: pip install 'salsa-dist[baselines]'") from e
    names = linear_names(model, layers, method.targets)
    config = LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=names)
    with injected(model, config, ".lora_", seed) as found:
        yield found
