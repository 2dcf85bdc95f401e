"""The modules of a base that have their own weights, in the order of a forward pass.

encoder ──► rest (projector) ──► llm ──► head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from salsa_dist.planner.kept import is_norm, kept_of

_CROSS = ("encoder_attn", "cross_attn", "cross_attention")


@dataclass(frozen=True)
class Module:
    """The cost of one module that has its own weights.

    Attributes:
        layer: index into `BaseShape.layers` of the layer that it is in; None: in none.
        after: index of the last layer that reaches its input, -1: none. A gradient goes back through
            it if one of the layers up to there is steered.
        weights: indices into `BaseShape.weights`.
        matmul: numbers that each token is multiplied with; of experts, those that a token meets.
        kept: numbers a token that backward needs on its account, in the base's precision.
        copies: those that it keeps in fp32 whatever the base's precision.
        runs_over: whose tokens: `encoder`, `llm` or `labels`.
    """

    layer: int | None
    after: int
    weights: tuple[int, ...]
    matmul: int
    kept: int
    copies: int
    runs_over: str


def modules_of(
    model: nn.Module,
    order: list[tuple[str, nn.Module]],
    lists: dict[str, nn.ModuleList],
    number: dict[int, int],
    head: nn.Module | None,
    config: Any,
) -> list[Module]:
    """Modules with their own weights, in the order of a forward pass.

    Args:
        order: site and module of each layer, encoder first.
        lists: the layer lists by component.
        number: by `id` of a parameter, its place in the model's order.
        head: what makes logits; None: no such module.
        config: of the model.
    """
    paths = {id(m): path for path, m in model.named_modules()}
    parents = {c: paths[id(stack)].rpartition(".")[0] for c, stack in lists.items()}
    layer_of = {paths[id(m)]: i for i, (_, m) in enumerate(order)}
    encoders = len(lists.get("encoder", []))
    crosses = bool(getattr(config, "is_encoder_decoder", False))
    last_encoder = max(
        (k for k, path in enumerate(paths.values()) if layer_of.get(path, encoders) < encoders),
        default=-1,
    )
    found: list[tuple[int, int, Module]] = []
    for place, (path, module) in enumerate(model.named_modules()):
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        inside = next((i for p, i in layer_of.items() if _under(path, p)), None)
        over = "llm"
        if module is head:
            stage, after, over = 3, len(order) - 1, "labels"
        elif _under(path, parents.get("encoder", "\0")):
            # What lies beside the layers runs before them (convolutions) or after (a norm).
            stage, after, over = 0, (encoders - 1 if place > last_encoder else -1), "encoder"
        elif _under(path, parents.get("llm", "\0")):
            stage, after = 2, (len(order) - 1 if is_norm(module) else encoders - 1)
        else:
            stage, after = 1, encoders - 1
        if inside is not None:
            after = inside - 1
            if crosses and over == "llm":
                if _reads_the_encoder(path):
                    after, over = encoders - 1, "encoder"
                elif inside == encoders and _before_the_cross(path):
                    after = -1  # it has seen text alone
        table = isinstance(module, nn.Embedding)
        own_numbers = tuple(number[id(p)] for p in own)
        matmul = 0 if table else _matmul(own, config)
        kept, copies = kept_of(model, path, module)
        after = -1 if table else after
        found.append((stage, place, Module(inside, after, own_numbers, matmul, kept, copies, over)))
    return [module for _, _, module in sorted(found, key=lambda entry: entry[:2])]


def _under(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(parent + ".")


def _reads_the_encoder(path: str) -> bool:
    """Whether a module makes keys or values of a cross-attention, from the encoder's output."""
    *_, block, name = ("", *path.split("."))
    return block in _CROSS and name in ("k_proj", "v_proj")


def _before_the_cross(path: str) -> bool:
    """Whether a module of a decoder layer runs before its cross-attention."""
    *_, block, name = ("", *path.split("."))
    return (
        block == "self_attn"
        or name in ("self_attn_layer_norm", "encoder_attn_layer_norm")
        or (block in _CROSS and name == "q_proj")
    )


def _matmul(own: list[nn.Parameter], config: Any) -> int:
    """Numbers that one token is multiplied with: matrices and convolutions, and experts by share."""
    total = 0.0
    for p in own:
        if p.ndim == 2:
            total += p.numel()
        elif p.ndim > 2:
            total += p.numel() * _expert_share(p, config)
    return int(total)


def _expert_share(p: nn.Parameter, config: Any) -> float:
    for tree in (config, getattr(config, "text_config", None)):
        experts = getattr(tree, "num_experts", None) or getattr(tree, "num_local_experts", None)
        chosen = getattr(tree, "num_experts_per_tok", None)
        if experts and chosen and p.shape[0] == experts:
            return float(chosen) / float(experts)
    return 1.0
