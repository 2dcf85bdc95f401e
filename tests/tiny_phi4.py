"""A complete tiny checkpoint of Phi-4-multimodal, in the files of its revision for transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_families import byte_tokenizer
from tiny_weights import randomise

# Of the revision's chat template, what a turn of text and audio takes.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif content['type'] == 'audio' %}{{ '<|audio|>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def make_phi4_multimodal(folder: Path) -> Path:
    """Weights without LoRA, and the LoRA for speech in a folder of its own."""
    import transformers as t

    marks = ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|image|>", "<|audio|>"]
    names = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    tokenizer = byte_tokenizer(marks, **names)
    tokenizer.chat_template = _TEMPLATE
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    config = t.Phi4MultimodalConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|endoftext|>"], ids["<|end|>"]],
        pad_token_id=ids["<|endoftext|>"],
        tie_word_embeddings=True,
        audio_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "input_size": 16,
            "ext_pw_out_channel": 24,
            "depthwise_separable_out_channel": 24,
            "nemo_conv_channels": 4,
            "bias_max_distance": 20,
            "audio_token_id": ids["<|audio|>"],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
            "patch_size": 14,
            "image_token_id": ids["<|image|>"],
        },
    )
    torch.manual_seed(3)
    model = randomise(t.Phi4MultimodalForCausalLM(config))
    mean_variance = model.model.embed_tokens_extend.audio_embed.encoder.encoder_embedding
    torch.nn.init.normal_(mean_variance.global_mean, mean=10.0)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    t.Phi4MultimodalFeatureExtractor(feature_size=16).save_pretrained(folder)
    _save_lora(model, folder / "speech-lora")
    return folder


def _save_lora(model: Any, folder: Path) -> None:
    """A LoRA of rank 4 on the LLM's linear maps, in the files of peft."""
    tensors = {}
    for name, module in model.model.layers.named_modules(prefix="base_model.model.model.layers"):
        if isinstance(module, torch.nn.Linear):
            tensors[f"{name}.lora_A.weight"] = 0.15 * torch.randn(4, module.in_features)
            tensors[f"{name}.lora_B.weight"] = 0.15 * torch.randn(module.out_features, 4)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.01,
        "bias": "none",
        "target_modules": r"model.layers.\d+.((self_attn\.(qkv|o)_proj)|(mlp\.(gate_up|down)_proj))",
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


PHI4: dict[str, Callable[[Path], Path]] = {"phi4_multimodal": make_phi4_multimodal}
