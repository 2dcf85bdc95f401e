"""What backward keeps on account of one module of a frozen base, in numbers a token.

    attention    q, k, v, output         keys and values repeated to as many heads as queries
    MLP          inner                   gated: gate, its activation and the other factor
    LayerNorm    its input
    RMSNorm      an fp32 copy of its input

No weight learns, so a linear layer keeps nothing itself: what reads its outputs keeps them. An output
that is only added to the layer's stream is not kept. Numbers a row (norms, the log-sum-exp of
attention), masks and rotary tables are not counted here; `step_cost.activation_bytes` adds a share.
"""

from __future__ import annotations

from torch import nn

_QUERIES = ("q_proj", "to_q", "linear_q", "query")


def is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def kept_of(model: nn.Module, path: str, module: nn.Module) -> tuple[int, int]:
    """Numbers that backward keeps a token: in the base's precision, and in fp32."""
    parent, _, name = path.rpartition(".")
    around = dict(model.get_submodule(parent).named_children())
    if is_norm(module):
        width = _normed(module, name, around)
        has_bias = getattr(module, "bias", None) is not None
        return (width, 0) if has_bias else (0, width)
    if not isinstance(module, nn.Linear):
        return 0, 0
    linear = {key: child for key, child in around.items() if isinstance(child, nn.Linear)}
    queries = next((linear[key] for key in _QUERIES if key in linear), None)
    if queries is not None:
        if name in ("k_proj", "v_proj"):
            return queries.out_features, 0
        # The last projection goes back to the stream: its input, the attention's output, is kept.
        return (queries.out_features if name in ("o_proj", "out_proj") else module.out_features), 0
    # An MLP's way back to the stream. One that is gated keeps the activation of its gate besides.
    inner = sum(c.out_features for c in linear.values() if c.out_features >= module.in_features)
    if inner and module.in_features > module.out_features:
        return (module.in_features if inner == 2 * module.in_features else 0), 0
    return module.out_features, 0


def _normed(module: nn.Module, name: str, around: dict[str, nn.Module]) -> int:
    """Numbers a token that a norm reads: a norm of one head reads all heads."""
    projection = around.get(name.replace("_norm", "_proj")) if name in ("q_norm", "k_norm") else None
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return int(next(module.parameters()).shape[0])
