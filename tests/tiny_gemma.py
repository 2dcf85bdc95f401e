"""Complete tiny checkpoints of Gemma 3n and Gemma 4, in the files that their publisher has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_families import byte_tokenizer
from tiny_weights import randomise

_TURN = {"gemma3n": ("<start_of_turn>", "<end_of_turn>"), "gemma4": ("<|turn>", "<turn|>")}


def make_gemma3n(folder: Path) -> Path:
    """Gemma 3n without weights of a vision tower; token ids in its order: text, vision, audio."""
    import transformers as t

    text = ["<pad>", "<eos>", "<bos>", *_TURN["gemma3n"], "<start_of_audio>", "<start_of_image>"]
    vision, audio = ["<end_of_image>", "<image_soft_token>"], ["<end_of_audio>", "<audio_soft_token>"]
    names = {"audio_token": audio[1], "boa_token": text[5], "eoa_token": audio[0]}
    tokenizer = byte_tokenizer([*text, *vision, *audio, "<unused>"], eos_token="<eos>", **names)
    tokenizer.chat_template = _template("gemma3n", audio[1])
    first = tokenizer.convert_tokens_to_ids(vision[0])
    sizes: dict[str, Any] = {"rms_norm_eps": 1e-6}
    config = t.Gemma3nConfig(
        audio_config={
            "hidden_size": 24,
            "vocab_size": len(tokenizer) - first - 2,
            "vocab_offset": first + 2,
            "input_feat_size": 16,
            "conf_num_hidden_layers": 2,
            "conf_num_attention_heads": 2,
            "sscp_conv_channel_size": [8, 4],
        },
        vision_config={
            **sizes,
            "hidden_size": 16,
            "vocab_size": 2,
            "vocab_offset": first,
            "label_names": ["LABEL_0", "LABEL_1"],
        },
        text_config={
            **_decoder(len(tokenizer)),
            "num_hidden_layers": 5,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
            "vocab_size_per_layer_input": first,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0],
            "laurel_rank": 4,
        },
        audio_soft_tokens_per_image=32,
        audio_token_id=tokenizer.convert_tokens_to_ids(audio[1]),
        image_token_id=tokenizer.convert_tokens_to_ids(vision[1]),
    )
    extractor = t.Gemma3nAudioFeatureExtractor(feature_size=16)
    return _save(folder, config, extractor, tokenizer, gate_proj=0.2, subsample=1.5)


def make_gemma4(folder: Path) -> Path:
    """Gemma 4 as E2B is: per-layer inputs, keys and values that the last layers share."""
    import transformers as t

    marks = ["<|audio>", "<|audio|>", "<audio|>", "<|image|>", "<|video|>"]
    names = {"audio_token": marks[1], "boa_token": marks[0], "eoa_token": marks[2]}
    special = ["<pad>", "<eos>", "<bos>", *_TURN["gemma4"], *marks]
    tokenizer = byte_tokenizer(special, eos_token="<eos>", **names)
    tokenizer.chat_template = _template("gemma4", marks[1])
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    config = t.Gemma4Config(
        audio_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [16, 4],  # the first is its mel bins
            "output_proj_dims": 16,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "position_embedding_size": 16,
        },
        text_config={
            **_decoder(len(tokenizer)),
            "global_head_dim": 16,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": len(tokenizer),
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
        audio_token_id=ids["<|audio|>"],
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
    )
    return _save(folder, config, t.Gemma4AudioFeatureExtractor(feature_size=16), tokenizer)


def _decoder(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "sliding_window": 64,
        "max_position_embeddings": 1024,
    }


def _template(model_type: str, audio_token: str) -> str:
    start, end = _TURN[model_type]
    return (
        "<bos>{% for m in messages %}" + start + "{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% for c in m.content %}{% if c.type == 'audio' %}" + audio_token + "{% else %}"
        "{{ c.text | trim }}{% endif %}{% endfor %}" + end + "\n{% endfor %}"
        "{% if add_generation_prompt %}" + start + "model\n{{ '' }}{% endif %}"
    )


def _save(folder: Path, config: Any, extractor: Any, tokenizer: Any, **own: float) -> Path:
    from salsa_dist.libraries.transformers import listed_class

    torch.manual_seed(0)
    model = randomise(listed_class(config)(config))
    with torch.no_grad():  # its many norms make larger ones steep: rounding shows in the gradients
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and ("audio_tower" in name or ".layers." in name):
                weight *= next((factor for part, factor in own.items() if part in name), 0.5)
    end = tokenizer.convert_tokens_to_ids(_TURN[config.model_type][1])
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def _without_timm() -> bool:
    """Whether this transformers builds Gemma 3n without its vision tower; 5.17 wants timm."""
    from transformers import AutoModel, Gemma3nConfig

    from salsa_dist.libraries.transformers import listed_class

    config = Gemma3nConfig()
    listed_class(config)
    return AutoModel._model_mapping[type(config.vision_config)].__name__ == "NoVision"


GEMMA: dict[str, Callable[[Path], Path]] = {
    **({"gemma3n": make_gemma3n} if _without_timm() else {}),
    "gemma4": make_gemma4,
}
