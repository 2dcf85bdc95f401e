"""A complete tiny checkpoint of Nemotron-3.5-Transcribe, in the files that transformers reads of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_families import byte_tokenizer
from tiny_weights import randomise

TURN, AUDIO = "<|im_end|>", "<|audio|>"
# Of the LLM's chat template, what a turn of text and audio takes: it thinks unless told not to.
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>"
    "{% endif %}{% for c in m.content %}{% if c.type == 'audio' %}<|audio|>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


def make_nemotron_transcribe(folder: Path) -> Path:
    """The audio token is past the LLM's vocabulary; chunks of 2 s, a fourth of it seen around them."""
    import transformers as t

    marks = ["<unk>", "<s>", "</s>", "<|im_start|>", TURN, "<think>", "</think>", AUDIO]
    tokenizer = byte_tokenizer(marks, eos_token=TURN)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    speech = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_mel_bins": 16,
    }
    config = t.Nemotron3_5TranscribeConfig(
        audio_config={
            "asr_config": speech,
            "diarization_config": {
                "model_type": "nemotron3_diarization",
                "audio_config": speech | {"hidden_size": 16},
                "head_config": {"hidden_size": 8, "audio_hidden_size": 16},
                "streaming_config": {"speaker_cache_length": 16},
                "chunk_length": 25,
                "chunk_left_context": 6,
                "chunk_right_context": 6,
                "fifo_length": 4,
                "speaker_cache_update_period": 16,
            },
        },
        text_config={
            "model_type": "nemotron_h",
            "vocab_size": ids[AUDIO],
            "hidden_size": 32,
            "layers_block_type": ["linear_attention", "moe", "full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "routed_scaling_factor": 2.5,
        },
        word_timestamp_config={
            "hidden_size": 24,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 257,
            "blank_token_id": 256,
        },
        audio_token_id=ids[AUDIO],
    )
    torch.manual_seed(0)
    model = randomise(t.Nemotron3_5TranscribeForConditionalGeneration(config))
    model.generation_config.pad_token_id = ids["<unk>"]
    model.generation_config.eos_token_id = [ids["</s>"], ids[TURN]]
    model.save_pretrained(folder)
    _as_published(folder / "model.safetensors")
    extractor = t.NemotronAsrStreamingFeatureExtractor(feature_size=16)
    t.Nemotron3_5TranscribeProcessor(
        extractor, tokenizer, byte_tokenizer(["<unk>"]), chat_template=_TEMPLATE
    ).save_pretrained(folder)
    return folder


def _as_published(path: Path) -> None:
    """All experts of a layer in one tensor, and constants that transformers leaves out."""
    tensors = load_file(path)
    names = [name for name in tensors if ".experts." in name]
    for name, joined in (("up_proj", "gate_and_up_projs"), ("down_proj", "down_projs")):
        own = sorted(n for n in names if n.endswith(f"{name}.weight"))
        layer = own[0].partition(".experts.")[0]
        tensors[f"{layer}.experts.{joined}"] = torch.stack([tensors[n].T for n in own]).contiguous()
    constants = {"perception.preprocessor.featurizer.fb": torch.zeros(1, 16, 257)}
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    save_file(kept | constants, path, metadata={"format": "pt"})


def _there() -> bool:
    import transformers

    return hasattr(transformers, "Nemotron3_5TranscribeConfig")


NEMOTRON: dict[str, Callable[[Path], Path]] = (
    {"nemotron_transcribe": make_nemotron_transcribe} if _there() else {}
)
