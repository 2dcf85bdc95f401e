"""Complete tiny checkpoints of bases that write a token per frame, in their publishers' files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tiny_ctc import LETTERS
from tiny_families import write_tekken
from tiny_weights import randomise
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers


def make_kyutai(folder: Path) -> Path:
    """Kyutai STT with 0.2 s of silence before a clip, a delay of 0.4 s, and three codebooks."""
    import transformers as t

    tokenizer = _pieces()
    codec = {
        "model_type": "mimi",
        "hidden_size": 16,
        "num_filters": 4,
        "codebook_size": 32,
        "codebook_dim": 8,
        "num_quantizers": 3,
        "vector_quantization_hidden_dimension": 8,
        "upsample_groups": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    words = len(tokenizer) + 1  # the last one begins a transcript
    config = t.KyutaiSpeechToTextConfig(
        vocab_size=words,
        bos_token_id=words - 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=96,
        sliding_window=125,
        max_position_embeddings=250,
        num_codebooks=3,
        codebook_vocab_size=33,
        audio_bos_token_id=32,
        audio_pad_token_id=words + 3 * 33,
        codec_config=codec,
    )
    torch.manual_seed(0)
    model = randomise(t.KyutaiSpeechToTextForConditionalGeneration(config))
    for name, buffer in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):
            torch.nn.init.normal_(buffer)
    model.generation_config.audio_window_size = 1
    for own in (model.generation_config, model.codec_model.generation_config):
        own._from_model_config, own.cache_implementation = False, "sliding_window"
    model.codec_model.generation_config.use_cache = True
    model.save_pretrained(folder)
    extractor = t.KyutaiSpeechToTextFeatureExtractor(
        audio_delay_seconds=0.4, audio_silence_prefix_seconds=0.2
    )
    t.KyutaiSpeechToTextProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def make_voxtral_realtime(folder: Path) -> Path:
    """Voxtral-Realtime with 0.32 s of silence before a clip and a delay of 0.16 s."""
    import transformers as t

    words = write_tekken(
        folder,
        {32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]"},
        "лекнощ",
        transcription_format="streaming",
        transcription_delay_ms=160,
        streaming_look_ahead_ms=2.5,
        streaming_look_back_ms=52.5,
        streaming_n_left_pad_tokens=4,
    )
    tokenizer = t.MistralCommonBackend.from_pretrained(folder)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "sliding_window": 64, "head_dim": 12}
    config = t.VoxtralRealtimeConfig(
        audio_config={"hidden_size": 24, "intermediate_size": 48, "num_mel_bins": 16, **shape},
        text_config={
            "vocab_size": words,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            **shape,
            "head_dim": 16,
        },
    )
    torch.manual_seed(0)
    model = randomise(t.VoxtralRealtimeForConditionalGeneration(config))
    model.generation_config.pad_token_id = 11
    model.save_pretrained(folder)
    extractor = t.VoxtralRealtimeFeatureExtractor(feature_size=16)
    t.VoxtralRealtimeProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def _pieces() -> Any:
    """As transformers converts Kyutai's sentencepiece model: letters, and bytes for all others."""
    from transformers import PreTrainedTokenizerFast

    control = ["<unk>", "<s>", "</s>", "<pad>"]
    words = [*control, *(f"<0x{i:02X}>" for i in range(256)), "▁", *LETTERS, "▁л", "ек"]
    raw = Tokenizer(
        models.BPE(
            {w: i for i, w in enumerate(words)},
            [("▁", "л"), ("е", "к")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
    )
    raw.add_special_tokens(control)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


FRAMES: dict[str, Callable[[Path], Path]] = {
    "kyutai": make_kyutai,
    **({"voxtral_realtime": make_voxtral_realtime} if find_spec("mistral_common") else {}),
}
