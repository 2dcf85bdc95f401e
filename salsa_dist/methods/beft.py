"""A vector added to the output of linear weights (BEFT, arXiv 2509.15974), by PEFT.

By default to that of the value projections, as its authors do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from salsa_dist.config import AdapterSettings, BeftMethod
from salsa_dist.errors import UserError
from salsa_dist.methods.base import BaseParts, among
from salsa_dist.methods.peft_layers import injected, linear_names, unfit_targets
from salsa_dist.methods.tuned import Tuned


class Beft(Tuned):
    """PEFT's BEFT in the layers of the sites."""

    section = BeftMethod
    title = "BEFT"

    @classmethod
    def label(cls, method: BeftMethod, adapter: AdapterSettings) -> str:
        return f"BEFT on {', '.join(method.targets)} of {adapter.sites}{among(adapter)}"

    @classmethod
    def unfit(
        cls, method: BeftMethod, components: Collection[str], base: BaseParts, dtype: str
    ) -> list[str]:
        return unfit_targets(method.targets, components, base)

    def installed(
        self, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        assert isinstance(self.config.method, BeftMethod)
        return install(self.config.method, model, layers, seed)


@contextmanager
def install(
    method: BeftMethod, model: nn.Module, layers: Mapping[str, nn.Module], seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    """BEFT's vectors in `model` until the block ends; see `injected`.

    Raises:
        UserError: the layers have no such weights, or PEFT is not installed, or has no BEFT.
    """
    try:
        from peft import BeftConfig
    except ImportError as e:
        raise UserError(
            "method beft needs a PEFT that has it: pip install --upgrade 'salsa-dist[baselines]' peft"
        ) from e
    names = linear_names(model, layers, method.targets)
    with injected(model, BeftConfig(target_modules=names), ".beft_bias", seed) as found:
        yield found
