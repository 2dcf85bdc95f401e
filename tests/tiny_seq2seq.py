"""Complete tiny checkpoints of encoder-decoder bases, in the files that their publishers have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_ctc import LETTERS, there
from tiny_weights import randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_CONFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 16,
}
_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
}


def make_moonshine(folder: Path) -> Path:
    import transformers as t

    tokenizer = _words([])
    config = t.MoonshineConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=48,
        **_ends(tokenizer),
    )
    extractor = t.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    model = t.MoonshineForConditionalGeneration(config)
    return _save(folder, model, t.Wav2Vec2Processor(extractor, tokenizer))


def make_moonshine_streaming(folder: Path) -> Path:
    import transformers as t

    tokenizer = _words([])
    encoder = {k: v for k, v in _CONFORMER.items() if not k.startswith(("subs", "num_mel"))}
    config = t.MoonshineStreamingConfig(
        vocab_size=len(tokenizer),
        encoder_config={**encoder, "head_dim": 12, "num_key_value_heads": 2}
        | {"sliding_windows": [[16, 4], [16, 0]]},
        **{**_DECODER, "max_position_embeddings": 512},  # of the encoder's positions too
        **_ends(tokenizer),
    )
    extractor = t.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    model = t.MoonshineStreamingForConditionalGeneration(config)
    return _save(folder, model, t.MoonshineStreamingProcessor(extractor, tokenizer))


def make_cohere_asr(folder: Path) -> Path:
    import transformers as t

    marks = ["<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|el|>"]
    marks += ["<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"]
    tokenizer = _words(marks)
    config = t.CohereAsrConfig(
        vocab_size=len(tokenizer), encoder_config=_CONFORMER, **_DECODER, **_ends(tokenizer)
    )
    config.decoder_start_token_id = tokenizer.convert_tokens_to_ids("▁")
    processor = t.CohereAsrProcessor(t.CohereAsrFeatureExtractor(feature_size=16), tokenizer)
    return _save(folder, t.CohereAsrForConditionalGeneration(config), processor)


def make_canary(folder: Path) -> Path:
    import transformers as t

    marks = ["<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>"]
    marks += [f"<|{code}|>" for code in ("bg", "el", "en")] + ["<|pnc|>", "<|nopnc|>"]
    tokenizer = _words(marks)
    ends = _ends(tokenizer) | {
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("<|startofcontext|>")
    }
    config = t.CanaryConfig(
        vocab_size=len(tokenizer),
        encoder_config={**_CONFORMER, "hidden_size": 32},  # no projection stands between them
        decoder_config={**_DECODER, "vocab_size": len(tokenizer)},
        **ends,
    )
    template = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}"
        "<|startofcontext|><|startoftranscript|><|emo:undefined|><|{{ c.source_language }}|>"
        "<|{{ c.target_language }}|>{{ '<|pnc|>' if c.punctuation else '<|nopnc|>' }}"
        "{% endif %}{% endfor %}{% endfor %}"
    )
    processor = t.CanaryProcessor(
        t.ParakeetFeatureExtractor(feature_size=16), tokenizer, chat_template=template
    )
    return _save(folder, t.CanaryForConditionalGeneration(config), processor)


def _words(marks: list[str]) -> Any:
    """Letters and words; spaces are `▁`."""
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<pad>", "▁", *LETTERS]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens([*words[:4], *marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def _ends(tokenizer: Any) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }


def _save(folder: Path, model: Any, processor: Any) -> Path:
    torch.manual_seed(2)
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SEQ2SEQ: dict[str, Callable[[Path], Path]] = {
    "moonshine": make_moonshine,
    "moonshine_streaming": make_moonshine_streaming,
    **({"cohere_asr": make_cohere_asr} if there("CohereAsrFeatureExtractor") else {}),
    **({"canary": make_canary} if there("ParakeetFeatureExtractor") else {}),
}
