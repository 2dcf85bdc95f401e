"""Which weights of a layer, or of a block inside one, move or scale its output.

module(x) with bias + d              -   module(x)   =   c · d, the same for every position
                                                         └─ the residual's multiplier, mostly 1
module(x) with (weight, bias) · s    =   s · module(x),  channel by channel

No table of module names: each bias as wide as the output is moved, each map that is as wide scaled, and
taken if that is all it does. A bias before a norm, an activation or a shared projection does more, or
does it elsewhere too. A layer's whole output can seldom be scaled: it adds its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.errors import UserError

_TOLERANCE = 1e-4  # of the shift, relative: rounding in fp32


@dataclass(frozen=True)
class Target:
    """A bias, and how far the layer's output moves when it moves by one."""

    name: str
    bias: nn.Parameter
    multiplier: float


@dataclass(frozen=True)
class Map:
    """What makes an output: scaling its rows by channel scales the output so.

    Attributes:
        rows: the weight, and the bias where there is one, by name; a row of each makes one channel.
    """

    rows: Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def targets(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, Target]:
    """The bias of each layer that a vector can be added to; a layer without one is left out.

    Args:
        model: in fp32, whole.
        layers: by site.
        inputs: of one forward pass.

    Raises:
        UserError: a layer does not run.
    """
    calls = _calls(model, layers, inputs)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users = _users(model)
    found = {}
    for site, layer in layers.items():
        if site not in calls:
            raise UserError(f"{site} can't be folded: its layer does not run in a forward pass")
        if (target := _target(layer, calls[site], names, users)) is not None:
            found[site] = target
    return found


def maps(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, Map]:
    """What makes the output of each of `layers`; one whose output can't be scaled is left out.

    Args: as of `targets`.
    """
    calls = _calls(model, layers, inputs)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users = _users(model)
    found = {}
    for site, layer in layers.items():
        if site in calls and (one := _map(layer, calls[site], names, users)) is not None:
            found[site] = one
    return found


def own_biases(model: nn.Module, layer: nn.Module) -> dict[str, nn.Parameter]:
    """Every bias of a layer that no other module shares, by its name in `model`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users = _users(model)
    return {
        names[id(bias)]: bias
        for name, bias in layer.named_parameters()
        if name.endswith("bias") and bias.is_floating_point() and users[id(bias)] == 1
    }


def _target(
    layer: nn.Module, call: _Call, names: Mapping[int, str], users: Mapping[int, int]
) -> Target | None:
    plain = _output(layer, call)
    width = plain.shape[-1]
    # The last bias is the likeliest.
    for name, bias in reversed(list(layer.named_parameters())):
        if not name.endswith("bias") or tuple(bias.shape) != (width,) or users[id(bias)] > 1:
            continue
        step = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(bias)
        before = bias.detach().clone()
        with torch.no_grad():
            bias.add_(step)
            shift = _output(layer, call) - plain
            bias.copy_(before)
        multiplier = float((shift.mean(dim=tuple(range(shift.ndim - 1))) @ step) / (step @ step))
        left = float((shift - multiplier * step).norm() / shift.norm().clamp_min(1e-20))
        if abs(multiplier) > _TOLERANCE and left < _TOLERANCE:
            return Target(names[id(bias)], bias, multiplier)
    return None


def _map(
    layer: nn.Module, call: _Call, names: Mapping[int, str], users: Mapping[int, int]
) -> Map | None:
    plain = _output(layer, call)
    width = plain.shape[-1]
    scale = 1 + torch.rand(width, generator=torch.Generator().manual_seed(0))
    # The last map is the likeliest.
    for module in reversed(list(layer.modules())):
        own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
        if not own or any(len(p) != width or users[id(p)] > 1 for p in own):
            continue
        before = [p.detach().clone() for p in own]
        with torch.no_grad():
            for p in own:
                p.copy_(scaled(p, scale))
            found = _output(layer, call)
            for p, old in zip(own, before, strict=True):
                p.copy_(old)
        wanted = plain * scale.to(plain)
        if float((found - wanted).norm() / wanted.norm().clamp_min(1e-20)) < _TOLERANCE:
            return Map({names[id(p)]: p for p in own})
    return None


def scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """Each row of a weight or a bias times its channel's number; (channels, …) and (channels,)."""
    return rows.detach() * scale.to(rows).view(-1, *[1] * (rows.ndim - 1))


def _users(model: nn.Module) -> dict[int, int]:
    """Number of modules that share each parameter; a shared bias would change other layers too."""
    count: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        count[id(parameter)] = count.get(id(parameter), 0) + 1
    return count


def _calls(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, _Call]:
    """The arguments of the first call of each layer."""
    calls: dict[str, _Call] = {}

    def keep(site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(site, _Call(args, kwargs))

        return hook

    hooks = [m.register_forward_pre_hook(keep(site), with_kwargs=True) for site, m in layers.items()]
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return calls


def _output(layer: nn.Module, call: _Call) -> Tensor:
    with torch.no_grad():
        output = layer(*call.args, **call.kwargs)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
