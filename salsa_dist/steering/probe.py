"""Tests each site: one forward and backward pass with a zero vector at every site.

    probe(site_modules(model), model, inputs)
      encoder.0   width 512   fires   gradient   rows: sample   padding-invariant (3e-7)
      encoder.1   …

Structure says where layers are; only a run says that a layer is reached, that the loss depends on it,
and what its output looks like:

    rows      shape with one sample, with two     a row is
              (1, T, H)    (2, T', H)             a sample
              (4, 1, T, H) (4, 2, T', H)          a sample, on dimension 1
              (n, H)       (n + m, H)             a packed token
              (1, T, H)    (2, T', H), and three for two samples of which one has two windows:
                                                  a chunk (fixed length) or a window (any length)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# The largest relative difference that counts as rounding, by the bytes of one number.
_ROUNDING = {8: 1e-9, 4: 1e-4, 2: 5e-2}


@dataclass(frozen=True)
class ProbeInputs:
    """Model inputs that hold the same first sample.

    Attributes:
        alone: that sample by itself.
        together: the sample, padded, and a longer one.
        spanning: two samples of which the second comes in two windows; None: the model has no such.
        window: what such a window is: `chunk` (of fixed length) or `window`.
    """

    alone: Mapping[str, Any]
    together: Mapping[str, Any]
    spanning: Mapping[str, Any] | None = None
    window: str = "window"


@dataclass(frozen=True)
class SiteReport:
    """The facts about one site; None: not probed, or unknown.

    Attributes:
        width: size of its vector.
        fires: its layer runs in a forward pass.
        gradient: a vector there gets a gradient.
        rows: what an entry of the output's batch dimension is: sample, chunk, window or token.
        dimension: which dimension of the output that is.
        padding_invariant: the sample gives the same alone and beside a longer one.
        padding_difference: relative L2 of the two.
        reason: why the site can't be steered; empty where it can.
    """

    site: str
    component: str
    width: int | None = None
    fires: bool | None = None
    gradient: bool | None = None
    rows: str | None = None
    dimension: int | None = None
    padding_invariant: bool | None = None
    padding_difference: float | None = None
    reason: str = ""


@dataclass
class _Seen:
    """The outputs of one forward pass by site, and the vectors that were added."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)


def probe(sites: Mapping[str, nn.Module], model: nn.Module, inputs: ProbeInputs) -> list[SiteReport]:
    """Run `model` and say of each site whether a vector there works.

    Args:
        sites: from `site_modules`.
        model: frozen, in eval mode.
        inputs: real features of clips, or `noise_inputs`.
    """
    together, logits = _run(sites, model, inputs.together, gradients=True)
    loss = _scalar(logits)
    if loss.requires_grad:
        loss.backward()
    alone, _ = _run(sites, model, inputs.alone)
    spanning = _Seen() if inputs.spanning is None else _run(sites, model, inputs.spanning)[0]
    reports = []
    for site in sites:
        component = site.partition(".")[0]
        output = together.outputs.get(site)
        if output is None:
            reason = "its layer does not run, or gives no tensor, in a forward pass"
            reports.append(SiteReport(site, component, fires=False, gradient=False, reason=reason))
            continue
        gradient = together.vectors[site].grad
        reached = gradient is not None and bool(gradient.any()) and bool(gradient.isfinite().all())
        rows, dimension = _rows(
            alone.outputs.get(site), output, spanning.outputs.get(site), inputs.window
        )
        difference = _padding_difference(alone.outputs.get(site), output, dimension)
        rounding = _ROUNDING[output.element_size()]
        reports.append(
            SiteReport(
                site,
                component,
                width=output.shape[-1],
                fires=True,
                gradient=reached,
                rows=rows,
                dimension=dimension,
                padding_invariant=None if difference is None else difference <= rounding,
                padding_difference=difference,
                reason="" if reached else "no gradient reaches it from the logits",
            )
        )
    return reports


def usable(reports: list[SiteReport]) -> list[str]:
    """The sites that can be steered, in the model's order."""
    return [r.site for r in reports if not r.reason]


def _run(
    sites: Mapping[str, nn.Module], model: nn.Module, inputs: Mapping[str, Any], gradients: bool = False
) -> tuple[_Seen, Tensor]:
    """One pass over `inputs` with a zero vector at each site."""
    seen = _Seen()

    def hook(site: str) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden, Tensor):
                return output
            vector = seen.vectors.get(site)
            if vector is None:
                vector = torch.zeros(hidden.shape[-1], device=hidden.device, requires_grad=gradients)
                seen.vectors[site] = vector
                seen.outputs[site] = hidden.detach()
            hidden = hidden + vector.to(hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    with ExitStack() as stack:
        for site, module in sites.items():
            stack.callback(module.register_forward_hook(hook(site)).remove)
        stack.enter_context(torch.set_grad_enabled(gradients))
        logits = model(**inputs, use_cache=False).logits
    return seen, logits


def _scalar(logits: Tensor) -> Tensor:
    """A number that each logit moves in its own way."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    return (logits.float() * weights.to(logits.device)).sum()


def _rows(
    alone: Tensor | None, together: Tensor, spanning: Tensor | None, window: str
) -> tuple[str | None, int | None]:
    if alone is None or alone.ndim != together.ndim:
        return None, None
    for d in range(together.ndim - 1):
        if (alone.shape[d], together.shape[d]) == (1, 2) and together.ndim > 2:
            several = spanning is not None and spanning.shape[d] == 3
            return (window if several else "sample"), d
    if together.ndim == 2 and alone.shape[0] < together.shape[0]:
        return "token", 0
    return None, None


def _padding_difference(alone: Tensor | None, together: Tensor, dimension: int | None) -> float | None:
    """Relative L2 of the first sample by itself and padded, over the positions that both have."""
    if alone is None or dimension is None:
        return None
    padded = together
    for d in range(together.ndim - 1):
        length = min(alone.shape[d], together.shape[d])
        alone, padded = alone.narrow(d, 0, length), padded.narrow(d, 0, length)
    own = alone.float()
    return float((padded.float() - own).norm() / own.norm().clamp_min(1e-20))
