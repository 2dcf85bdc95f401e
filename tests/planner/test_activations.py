"""Planned bytes of activations beside those that autograd keeps, at true widths on the meta device.

Each base has its published widths and three layers a component: what is kept grows by the layer. The
meta device has no fused attention, so a stand-in keeps q, k, v, its output and one number a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from salsa_dist.libraries.transformers import without_weights
from salsa_dist.placement.recompute import recompute_in_backward
from salsa_dist.planner.base_shape import shape_of
from salsa_dist.planner.step_cost import activation_bytes
from salsa_dist.planner.step_work import Work, tokens_of
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import find_layers, site_modules, whole_layers
from salsa_dist.steering.widths import site_widths

CLIPS, SECONDS = 2, 30.0
_LARGE = {
    "d_model": 1280,
    "encoder_layers": 3,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
    "num_mel_bins": 128,
}
_VOXTRAL_ENCODER = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 3,
    "num_attention_heads": 20,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}

_AFTER_ENCODER = re.compile(r"(encoder|audio_tower)\.layer_norm$")


def _llm(kind: str, hidden: int, inner: int, heads: int, keys: int, **other: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": 1024,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        **other,
    }


def whisper() -> nn.Module:
    """Whisper-large-v3."""
    decoder = {"decoder_layers": 3, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120}
    config = transformers.WhisperConfig(**_LARGE, **decoder)
    return without_weights(transformers.WhisperForConditionalGeneration, config, torch.bfloat16)


def qwen2_audio() -> nn.Module:
    """Qwen2-Audio-7B."""
    text = _llm("qwen2", 4096, 11008, 32, 32)
    config = transformers.Qwen2AudioConfig(audio_config=_LARGE, text_config=text)
    return without_weights(transformers.Qwen2AudioForConditionalGeneration, config, torch.bfloat16)


def voxtral(hidden: int, inner: int) -> nn.Module:
    """Voxtral-Mini-3B and Voxtral-Small-24B: grouped keys, heads of 128."""
    text = _llm("llama", hidden, inner, 32, 8, head_dim=128)
    config = transformers.VoxtralConfig(audio_config=_VOXTRAL_ENCODER, text_config=text)
    return without_weights(transformers.VoxtralForConditionalGeneration, config, torch.bfloat16)


def qwen3_llm() -> nn.Module:
    """Qwen2-Audio's encoder over the LLM of Qwen3-8B: norms of queries and keys."""
    text = _llm("qwen3", 4096, 12288, 32, 8, head_dim=128)
    config = transformers.Qwen2AudioConfig(audio_config=_LARGE, text_config=text)
    return without_weights(transformers.Qwen2AudioForConditionalGeneration, config, torch.bfloat16)


BASES: dict[str, Callable[[], nn.Module]] = {
    "whisper-large-v3": whisper,
    "qwen2-audio-7b": qwen2_audio,
    "voxtral-mini-3b": partial(voxtral, 3072, 8192),
    "voxtral-small-24b": partial(voxtral, 5120, 32768),
    "qwen3-8b": qwen3_llm,
}


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out


def fused(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    out: Tensor = Fused.apply(q, k, v)
    return out


def kept(model: Any, work: Work) -> tuple[int, int]:
    """Bytes that autograd keeps of a pass, and those of its largest layer without its site."""
    shape, layers = shape_of(model, "base", "bfloat16"), find_layers(model)
    tokens = tokens_of(shape, work)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, tuple[int, Any]] = {}  # the storages too, so that none is counted for another
    starts: list[int] = []
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    def before(*_: Any) -> None:
        starts.append(total())

    def after(*_: Any) -> None:
        nonlocal largest
        largest = max(largest, total() - starts.pop())

    def total() -> int:
        return sum(size for size, _ in seen.values())

    empty = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    norm_after = next(m for path, m in model.named_modules() if _AFTER_ENCODER.search(path))
    mask = torch.empty(CLIPS, 1, tokens["llm"], tokens["llm"], dtype=torch.bool, device="meta")
    hooks = [stack[-1].register_forward_pre_hook(before) for stack in layers.values()]
    hooks += [stack[-1].register_forward_hook(after, prepend=True) for stack in layers.values()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = empty(CLIPS, tokens["encoder"], shape.width("encoder.0"))
        # As in a run, no gradient is asked for below the first steered layer.
        with torch.set_grad_enabled(any(site.startswith("encoder") for site in work.sites[0])):
            for layer in layers["encoder"]:
                made = layer(hidden, None)
                hidden = made[0] if isinstance(made, tuple) else made
            hidden = norm_after(hidden)
        text = empty(CLIPS, tokens["llm"], shape.width("llm.0"))
        inputs = {"encoder_hidden_states": hidden} if shape.encoder_decoder else {}
        text.requires_grad_(hidden.requires_grad and not inputs)
        model.get_decoder()(inputs_embeds=text, attention_mask=mask, use_cache=False, **inputs)
    for hook in hooks:
        hook.remove()
    return total(), largest


@pytest.mark.parametrize("name", BASES)
def test_planned_activations_are_those_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never under, and at most 10% over, of steered encoders and LLMs, checkpointed and not."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    model = BASES[name]().eval().requires_grad_(False)
    shape, widths, modules = (
        shape_of(model, "base", "bfloat16"),
        site_widths(find_layers(model)),
        site_modules(model),
    )
    rows = torch.zeros(CLIPS, dtype=torch.int64, device="meta")
    for words in ("encoder", "llm", "encoder+llm"):
        sites = shape.sites(words)
        # Logits are planned beside what is kept; here are none.
        work = Work(CLIPS, CLIPS, (sites,), clip_s=SECONDS, labels=0)
        bank = Bank([AdapterSpec("a", sites, "salsa")], widths, "meta")
        with bank.attached(modules), bank.rows({"encoder": rows, "llm": rows}):
            plain, layer = kept(model, work)
            undo = recompute_in_backward(whole_layers(find_layers(model)).values(), bank)
            again, _ = kept(model, work)
            undo()
        for checkpointing, found in ((False, plain), (True, again + layer)):
            planned = activation_bytes(shape, replace(work, checkpointing=checkpointing), CLIPS)
            assert found <= planned <= 1.1 * found, (words, checkpointing)
