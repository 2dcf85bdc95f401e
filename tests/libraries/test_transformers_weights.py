"""What we assume of how transformers makes weights of stored tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import salsa_dist.libraries.transformers_weights as library
from salsa_dist.libraries.transformers import without_weights
from salsa_dist.speech_llms.load import load_speech_llm


def test_stored_names_become_the_models(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperModel

    model = without_weights(WhisperForConditionalGeneration, AutoConfig.from_pretrained(tiny_base))
    rename = library.renaming(model)
    assert rename is not None
    key = "model.encoder.conv1.weight"
    assert rename(key) == (key, False)
    body = library.renaming(without_weights(WhisperModel, model.config))
    assert body is not None
    assert body(key) == ("encoder.conv1.weight", False)
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    assert library.renaming(model) is None


def _experts() -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model with 12 experts, and its weights in the layout in which it is published."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=10,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        num_experts=12,  # expert 10 comes after 9, not after 1
        moe_intermediate_size=3,
        decoder_sparse_step=1,
    )
    stored = {}
    for e in range(12):
        for name, shape in (("gate_proj", (3, 4)), ("up_proj", (3, 4)), ("down_proj", (4, 3))):
            key = f"model.layers.0.mlp.experts.{e}.{name}.weight"
            stored[key] = torch.full(shape, float(e if name != "up_proj" else -e))
    stored["model.norm.weight"] = torch.ones(4)
    stored["of.another.model"] = torch.ones(4)
    return without_weights(Qwen3MoeForCausalLM, config), stored


def test_weights_are_made_of_stored_tensors(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stored = _experts()
    made = library.made_of(model, stored)
    names = [f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    assert set(made) == {*names, "model.norm.weight"}
    assert made["model.norm.weight"] is stored["model.norm.weight"]
    for name in names:
        assert made[name].shape == model.get_parameter(name).shape
        assert made[name][:, 0, 0].tolist() == list(range(12))
    assert made[names[0]][:, -1, 0].tolist() == [-e for e in range(12)]
    # Without these internals the base is loaded whole.
    assert load_speech_llm(tiny_base, filled=False).sources is not None
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    whole = load_speech_llm(tiny_base, filled=False)
    assert whole.sources is None
    assert whole.why_whole is not None
    assert "does not say where each stored tensor belongs" in whole.why_whole
