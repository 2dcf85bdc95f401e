"""Complete tiny checkpoints of each family, made here: config, weights, tokenizer, processor.

Weights are random, widths differ between encoder and LLM on purpose, windows are short. `FAMILIES` names
the function that writes each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import make_base
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_qwen2_audio(folder: Path) -> Path:
    """Qwen2-Audio-Instruct with a 2 s window."""
    import transformers as t

    special = [*CHATML, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer = _byte_tokenizer(special)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    config = t.Qwen2AudioConfig(
        audio_config=_whisper_like(d_model=24),
        text_config=_qwen_like("qwen2", len(tokenizer)),
        audio_token_index=ids["<|AUDIO|>"],
    )
    model = _random(t.Qwen2AudioForConditionalGeneration, config)
    extractor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return _save(folder, model, t.Qwen2AudioProcessor(extractor, tokenizer), ids)


def _byte_tokenizer(special: list[str], **names: str) -> Any:
    """Every byte a token, and the special ones behind them."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=special[0],
        eos_token=names.pop("eos_token", special[0]),
        clean_up_tokenization_spaces=False,
        extra_special_tokens=names,
    )


def _whisper_like(d_model: int) -> dict[str, Any]:
    """An audio config over 2 s windows of 16 mel bins."""
    return {
        "d_model": d_model,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 4 * d_model,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    }


def _qwen_like(model_type: str, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }


def _random(model_class: Any, config: Any) -> Any:
    """Weights large enough that audio, prompt and vectors all move the logits."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "position" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def _save(folder: Path, model: Any, processor: Any, ids: dict[str, int]) -> Path:
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.generation_config.eos_token_id = [ids["<|endoftext|>"], ids["<|im_end|>"]]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "whisper": make_base,
    "qwen2_audio": make_qwen2_audio,
}
