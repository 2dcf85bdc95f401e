"""All methods, by their name in a config.

A new method needs a file, a class in the config's schema, and a line here.
"""

from __future__ import annotations

from typing import Any

from salsa_dist.config import AdapterSettings, Config
from salsa_dist.methods.base import Method
from salsa_dist.methods.beft import Beft
from salsa_dist.methods.bias import Bias
from salsa_dist.methods.in_context import InContext
from salsa_dist.methods.lora import Lora
from salsa_dist.methods.mean_difference import MeanDifference
from salsa_dist.methods.steering import Steering
from salsa_dist.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    "salsa": Steering,
    "lora": Lora,
    "beft": Beft,
    "bias": Bias,
    "mean-difference": MeanDifference,
    "in-context": InContext,
    "zero-shot": ZeroShot,
}


def steers(kind: str, *, trained: bool = False) -> bool:
    """Whether a kind of method makes steering vectors; with `trained`, by gradient steps."""
    section = METHODS[kind].section
    return bool(section.steers and (section.learns or not trained))


def label_of(method: Any, adapter: AdapterSettings) -> str:
    """The name of an adapter's row in reports; see `Method.label`."""
    return METHODS[method.kind].label(method, adapter)


def method_of(config: Config) -> Method:
    """The method of a run."""
    return METHODS[config.method.kind](config)
