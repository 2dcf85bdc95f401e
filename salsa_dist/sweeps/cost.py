"""The cost of a sweep's adapters, packed and separate, estimated from layers and parameters.

    clip ─ encoder.0 … encoder.s ─┬─ encoder.s+1 … llm ─ loss      forward: 2 FLOP a parameter and token
            once for all of them  ├─ …                             backward the same (frozen weights
                                  └─ one per adapter               need no gradient of their own)

Nothing is loaded: the model is built without weights. Attention's own products are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from salsa_dist.config import Config
from salsa_dist.libraries.transformers import without_weights
from salsa_dist.planner.step_work import DEFAULT_CLIP_S
from salsa_dist.speech_llms.base_files import base_revision
from salsa_dist.speech_llms.inspection import class_of, read_config
from salsa_dist.speech_llms.load import FAMILIES, refuse_stride
from salsa_dist.steering.blocks import last_layer_below
from salsa_dist.steering.sites import find_layers, layer_counts, select

_FRAMES_PER_S = 50  # an encoder's positions a second
_TEXT_TOKENS = 32  # prompt and transcript of a clip
_AUDIO_TOKENS_PER_S = 12.5  # placeholders in the LLM of a chat family


@dataclass(frozen=True)
class BaseFacts:
    """Facts of a base that are known without its weights.

    Attributes:
        layers: component to how many it has.
        layer_parameters: component to the parameters of one layer.
        width: numbers an encoder position has.
        shares: clips are shared below the first steered layer.
        encoder_tokens, llm_tokens: positions of one clip at the window of training.
        kept_tokens: encoder positions of a ten-second clip, with its trailing padding thinned out.
        decoded_tokens: the encoder's of one clip that is transcribed.
        in_context: its family has a prompt with examples.
        linear: component to the names of linear modules inside its layers.
        biased: components whose layers have biases.
    """

    revision: str
    parameters: int
    layers: dict[str, int]
    layer_parameters: dict[str, int]
    width: int
    shares: bool
    encoder_tokens: float
    kept_tokens: float
    decoded_tokens: float
    llm_tokens: float
    in_context: bool
    linear: dict[str, frozenset[str]]
    biased: frozenset[str]


def base_facts(config: Config) -> BaseFacts:
    """Facts of the config's base; a `UserError` for one that can't be built, or trained so."""
    base = config.base
    tree: Any = read_config(base.name, base.revision)
    refuse_stride(base.name, tree.model_type, config.training.silence_stride)
    model: Any = without_weights(class_of(tree, base.name), tree)
    lists = find_layers(model, base.layers)
    window_s = config.base_in_training().window_s or 30.0
    clip_s = min(window_s, DEFAULT_CLIP_S)
    stride = config.training.silence_stride
    ends_s = min(2 * (config.training.silence_ends_s or 0.0), window_s - clip_s)
    kept_s = clip_s + ends_s + (window_s - clip_s - ends_s) / (1 if stride == "auto" else stride)
    in_llm = 0.0 if hasattr(tree, "max_target_positions") else _AUDIO_TOKENS_PER_S * window_s
    one = {
        component: sum(p.numel() for p in stack[len(stack) // 2].parameters())
        for component, stack in lists.items()
    }
    widths = [p.shape[0] for p in next(iter(lists.values()))[0].parameters() if p.ndim == 1]
    return BaseFacts(
        revision=base_revision(base.name, base.revision),
        parameters=sum(p.numel() for p in model.parameters()),
        layers=layer_counts(lists),
        layer_parameters=one,
        width=min(widths, default=0),
        shares=config.training.share_prefix and "encoder" in lists,
        encoder_tokens=_FRAMES_PER_S * window_s,
        kept_tokens=_FRAMES_PER_S * kept_s,
        decoded_tokens=_FRAMES_PER_S * (base.window_s or 30.0),
        llm_tokens=_TEXT_TOKENS + in_llm,
        in_context=hasattr(FAMILIES.get(tree.model_type), "in_context_batch"),
        linear={
            component: frozenset(
                name.rpartition(".")[2]
                for name, module in stack.named_modules()
                if isinstance(module, torch.nn.Linear)
            )
            for component, stack in lists.items()
        },
        biased=frozenset(
            component
            for component, stack in lists.items()
            if any(name.rpartition(".")[2] == "bias" for name, _ in stack.named_parameters())
        ),
    )


@dataclass(frozen=True)
class ClipCost:
    """FLOP of one clip's step with some adapters on it: in every step, and once before training."""

    each_step: float
    once: float = 0.0


def clip_cost(facts: BaseFacts, sites: Sequence[str], shared: bool, kept: bool = False) -> ClipCost:
    """The cost of one clip with one adapter for each of `sites`.

    Args:
        sites: each adapter's choice in words.
        shared: the clip goes once through what lies below; else once for each adapter.
        kept: what lies below the first steered layer comes from the cache.
    """
    encoder, llm = facts.layers.get("encoder", 0), facts.layers.get("llm", 0)
    one_encoder = 2 * facts.layer_parameters.get("encoder", 0) * facts.kept_tokens
    one_llm = 2 * facts.layer_parameters.get("llm", 0) * facts.llm_tokens
    chosen = [select(words, facts.layers) for words in sites]
    first_encoder = [_lowest(names, "encoder", encoder) for names in chosen]
    first_llm = [
        0 if e < encoder else _lowest(n, "llm", llm) for e, n in zip(first_encoder, chosen, strict=True)
    ]
    # What lies below the lowest steered layer of the job needs no backward; its own output does not.
    job_encoder = min(first_encoder)
    job_llm = min(first_llm)
    cost = once = 0.0
    stage = [min(e, encoder - 1) for e in first_encoder]
    for level in range(encoder):
        split = sum(s < level for s in stage)
        streams = len(sites) if not shared else split + any(s >= level for s in stage)
        if kept and level <= min(stage):
            once += one_encoder
            continue
        cost += one_encoder * streams * (2 if level > job_encoder else 1)
    for level in range(llm):
        cost += one_llm * len(sites) * (2 if level > job_llm or job_encoder < encoder else 1)
    return ClipCost(cost, once)


def decoding_flop(facts: BaseFacts) -> float:
    """FLOP of one clip transcribed, each layer once for each position."""
    encoder = facts.layers.get("encoder", 0) * facts.layer_parameters.get("encoder", 0)
    llm = facts.layers.get("llm", 0) * facts.layer_parameters.get("llm", 0)
    return 2 * (encoder * facts.decoded_tokens + llm * facts.llm_tokens)


def _lowest(names: Sequence[str], component: str, none: int) -> int:
    """The last layer of a component that no vector reaches into; -1: not even the first."""
    own = [last_layer_below(name) for name in names if name.startswith(component + ".")]
    return min(own, default=none)


def activation_bytes(facts: BaseFacts, config: Config) -> float:
    """Bytes of one micro-batch's activations that backward needs, at the most.

    34 bytes a position and number of width in 16 bits (Korthikanti et al., arXiv 2205.05198, eq. 2
    without attention's own), twice that in fp32; with activation checkpointing only a layer's input.
    """
    bytes_each = 2.0 if config.training.activation_checkpointing else 34.0
    bytes_each *= 2 if config.base.dtype == "float32" else 1
    positions = (
        facts.layers.get("encoder", 0) * facts.encoder_tokens
        + facts.layers.get("llm", 0) * facts.llm_tokens
    )
    return config.training.clips_per_pass * positions * facts.width * bytes_each
