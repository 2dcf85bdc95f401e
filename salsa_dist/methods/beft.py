"""A vector added to the output of linear weights (BEFT, arXiv 2509.15974), by PEFT.

By default to that of the value projections, as its authors do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from salsa_dist.config import AdapterSettings, BeftMethod
from salsa_dist.errors import UserError
from salsa_dist.methods.base import among
from salsa_dist.methods.peft_layers import OnLinear


class Beft(OnLinear):
    """PEFT's BEFT in the layers of the sites."""

    section = BeftMethod
    title = "BEFT"
    mark = ".beft_bias"

    @classmethod
    def label(cls, method: BeftMethod, adapter: AdapterSettings) -> str:
        return f"BEFT on {', '.join(method.targets)} of {adapter.sites}{among(adapter)}"

    @classmethod
    def peft_config(cls, method: BeftMethod) -> Callable[..., Any]:
        try:
            from peft import BeftConfig
        except ImportError as e:
            raise UserError(
                "method beft needs a PEFT that has it: pip install --upgrade 'salsa-dist[baselines]' "
                "peft"
            ) from e
        found: Callable[..., Any] = BeftConfig
        return found
