"""An adapter on a model: does it fit, and steering it from one moment to another.

model ── of load_speech_llm, of transformers, or in a transformers pipeline
  ├── describe ──> base, revision, architecture, model_type: what an adapter remembers of it
  └── Attachment ── a bank of the adapter, by a forward hook per steered layer, until detach()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.log import log
from salsa_dist.steering.adapter_folder import known_as
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.rules.registry import rule_named
from salsa_dist.steering.sites import by_site, find_layers
from salsa_dist.steering.widths import site_widths

if TYPE_CHECKING:
    from salsa_dist.steering.vectors import SteeringVectors


class Attachment:
    """One adapter on one model, for every sample, until `detach` or the end of a `with` block.

    Args:
        bank: of one adapter.
        modules: the layers of the model by site.
    """

    def __init__(self, bank: Bank, modules: Mapping[str, nn.Module]) -> None:
        for vector in bank.vectors.values():
            vector.requires_grad_(False)  # the model's output keeps no graph for their sake
        # Bound to this object, so an attachment that nobody keeps goes on steering.
        self._bank = bank
        self._hooks = [
            modules[site].register_forward_hook(partial(self._steer, site)) for site in bank.sites
        ]

    def detach(self) -> None:
        """Steer no longer; a second call does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _steer(self, site: str, module: nn.Module, args: Any, output: Any) -> Any:
        return self._bank.steer_output(site, output, 0)


def bank_of(adapters: Sequence[SteeringVectors], device: torch.device | str) -> Bank:
    """A bank with these adapters as its rows; none makes one that steers nothing."""
    specs = [AdapterSpec(a.name, tuple(a.vectors), a.rule) for a in adapters]
    widths = {
        site: len(v) // rule_named(a.rule).parts for a in adapters for site, v in a.vectors.items()
    }
    bank = Bank(specs, widths, device)
    for row, adapter in enumerate(adapters):
        bank.set_row(row, adapter.vectors)
    return bank


def describe(model: Any) -> dict[str, str]:
    """The facts about its base that an adapter stores; "" if unknown.

    Args:
        model: what `load_speech_llm` returns, a transformers model, or a pipeline with one.
    """
    module = module_of(model)
    return {
        "base": known_as(model.name) if loaded_by_us(model) else "",
        "revision": model.revision if loaded_by_us(model) else "",
        "architecture": type(module).__name__,
        "model_type": getattr(getattr(module, "config", None), "model_type", None) or "",
        "quantization": (loaded_by_us(model) and model.quantization) or "",
    }


def fitting_sites(
    model: Any,
    vectors: Mapping[str, Tensor],
    rule: str,
    made_for: Mapping[str, str],
    label: str,
    force: bool = False,
) -> dict[str, nn.Module]:
    """The modules of `model` by site, if an adapter fits it.

    Args:
        model: as in `describe`.
        vectors: site name to vector, (parts * hidden,) with the parts of its rule.
        rule: its name.
        made_for: what `describe` said of its base.
        label: names the adapter in errors.
        force: another base will do, as long as its sites and widths are there.

    Raises:
        UserError: it was made for another base, or steers sites that the model lacks.
    """
    here = describe(model)
    differ = [
        f"{what} {mine} where this base has {theirs}"
        for what in ("architecture", "model_type", "revision")
        if (mine := made_for[what]) and (theirs := here[what]) and mine != theirs
    ]
    if differ and not force:
        raise UserError(
            f"{label} was made for another base, {made_for['base'] or 'not named'}: "
            f"{', '.join(differ)}; use its own base, or force it if you know that it fits"
        )
    if made_for["quantization"] != here["quantization"] and loaded_by_us(model):
        own, this = _quantised(made_for["quantization"]), _quantised(here["quantization"])
        log.warning(f"{label} was made for its base {own}, and this one is {this}")
    module = module_of(model)
    # What `load_speech_llm` returns has found its layer lists.
    lists = model.layer_lists if loaded_by_us(model) else find_layers(module)
    sites = by_site(lists)
    if missing := [site for site in vectors if site not in sites]:
        raise UserError(
            f"{label} steers {missing[0]}, which this base does not have; "
            f"its sites are {next(iter(sites))} to {list(sites)[-1]}"
        )
    widths, parts = site_widths(lists), rule_named(rule).parts
    for site, vector in vectors.items():
        if parts * widths[site] != len(vector):
            raise UserError(
                f"{label} has width {len(vector)} at {site} where this base has "
                f"{parts * widths[site]}: use the base that it was trained on"
            )
    return sites


def _quantised(kind: str) -> str:
    return f"quantised as {kind}" if kind else "as it is stored"


def module_of(model: Any) -> nn.Module:
    """The transformers model itself."""
    if isinstance(model, nn.Module):
        return model
    module = getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"a {type(model).__name__} can't be steered: give what load_speech_llm returns, a "
            "transformers model, or a pipeline with one"
        )
    return module


def loaded_by_us(model: Any) -> bool:
    """Whether it is what `load_speech_llm` returns, which knows its name, revision and layers."""
    return not isinstance(model, nn.Module) and hasattr(model, "revision")
