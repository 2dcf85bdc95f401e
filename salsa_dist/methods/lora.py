"""Low-rank updates `W + B A alpha / rank` of linear weights (Hu et al., arXiv 2106.09685), by PEFT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from salsa_dist.config import AdapterSettings, LoraMethod
from salsa_dist.errors import UserError
from salsa_dist.methods.base import among
from salsa_dist.methods.peft_layers import OnLinear


class Lora(OnLinear):
    """PEFT's LoRA in the layers of the sites."""

    section = LoraMethod
    title = "LoRA"
    mark = ".lora_"

    @classmethod
    def label(cls, method: LoraMethod, adapter: AdapterSettings) -> str:
        where = f"{', '.join(method.targets)} of {adapter.sites}"
        return f"LoRA r={method.rank} on {where}{among(adapter)}"

    @classmethod
    def peft_config(cls, method: LoraMethod) -> Callable[..., Any]:
        try:
            from peft import LoraConfig
        except ImportError as e:
            raise UserError("method lora needs PEFT: pip install 'salsa-dist[baselines]'") from e
        return partial(LoraConfig, r=method.rank, lora_alpha=method.alpha)
