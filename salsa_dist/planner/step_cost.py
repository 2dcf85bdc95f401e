"""The cost of one step: FLOPs of its matrices, and estimated activations for the backward pass.

See docs/placement.md for how well the estimates meet what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import floor

import torch

from salsa_dist.planner.base_shape import BaseShape
from salsa_dist.planner.step_work import Work, differentiated, first_layer, recomputed, tokens_of
from salsa_dist.steering.blocks import layer_of

# What is kept besides, as a share: numbers a row (norms, log-sum-exp), masks, rotary tables. It was
# 0.2% to 0.6% at the widths in tests/planner/test_activations.py.
_SMALL = 0.01


def flops(shape: BaseShape, work: Work, tokens: Mapping[str, float] | None = None) -> float:
    """FLOPs of one step over all ranks: two per matrix element and token.

    Forward goes through everything; backward only makes gradients of activations (no weight learns),
    as many FLOPs again, from the first steered layer on. Attention adds 4·T·T·width a layer forward
    and twice that backward. Recomputing adds one forward of the layers that have a backward.

    Args:
        tokens: of one clip in each part, where they were counted; None: `tokens_of`.
    """
    first = first_layer(shape, work)
    tokens = tokens_of(shape, work) if tokens is None else tokens
    total = 0.0
    for module in shape.modules:
        forward = 2.0 * module.matmul * tokens[module.runs_over]
        times = 1
        if work.training:
            times += differentiated(module, first) + recomputed(module, work, first)
        total += times * forward
    for i, layer in enumerate(shape.layers):
        over = layer.site.partition(".")[0]
        keys = tokens[over]
        if over == "llm" and shape.encoder_decoder:
            keys += tokens["encoder"]
        forward = 4.0 * tokens[over] * keys * layer.width
        times = 1
        if work.training and i > first:
            times = 3 + work.checkpointing
        total += times * forward
    return total * work.clips


def activation_bytes(shape: BaseShape, work: Work, clips: int) -> int:
    """Bytes of activations that a device keeps for backward, `clips` long ones in a pass: an estimate.

    A layer keeps, a token, what `kept.py` says; a site the activation that it steers. A site inside a
    layer is recomputed with it. Attention is taken to be fused, so no scores are kept. Logits count
    three times, in fp32: themselves, their softmax and its gradient. Without a backward pass it is the
    keys and values of every layer and the outputs of one layer.
    """
    tokens = tokens_of(shape, replace(work, clip_s=work.long_s or work.clip_s))
    first = first_layer(shape, work)
    itemsize = getattr(torch, shape.dtype).itemsize  # some bases keep a few weights in fp32
    steered = {site for sites in work.sites for site in sites}
    inner = [0] * len(shape.layers)
    outside = 0
    for module in shape.modules:
        kept = (module.kept * itemsize + module.copies * 4) * tokens[module.runs_over]
        if module.runs_over == "labels":
            continue
        if module.layer is not None:
            inner[module.layer] += kept
        elif differentiated(module, first):
            outside += kept
    if not work.training:
        cache = sum(2 * x.width * tokens["llm"] for x in shape.layers if x.site.startswith("llm"))
        return clips * (cache * itemsize + max(inner, default=0) + shape.vocabulary * 8)
    start = max(0, floor(first))  # a block of layer 0 is below 0
    own = range(floor(first) + 1, len(shape.layers))
    rows = [tokens[x.site.partition(".")[0]] * x.width for x in shape.layers]
    sites = itemsize * sum(n for n, x in zip(rows, shape.layers, strict=True) if x.site in steered)
    for site in steered:
        if site != layer_of(site):
            place = shape.place(site)
            inner[place] += rows[place] * itemsize
    if work.checkpointing:
        layers = sum(rows[start:]) * itemsize + max((inner[i] for i in own), default=0)
        if shape.encoder_decoder:  # every decoder layer is given the encoder's rows
            layers += tokens["encoder"] * shape.layers[0].width * itemsize
    else:
        layers = sum(inner[i] for i in own)
    logits = 3 * 4 * tokens["labels"] * shape.vocabulary
    return clips * (round((layers + sites + outside) * (1 + _SMALL)) + logits)
