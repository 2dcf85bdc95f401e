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


def make_seamless_m4t(folder: Path) -> Path:
    """SeamlessM4T v2 whole, with the parts that read text and speak; languages in three letters."""
    import transformers as t

    from salsa_dist.libraries.transformers import keep_as_written

    codes = ["bul", "ell", "eng"]
    words = ["<pad>", "<unk>", "<s>", "</s>", "▁", *LETTERS]
    tokenizer = t.SeamlessM4TTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        additional_special_tokens=[f"__{code}__" for code in codes],
        tgt_lang="bul",
    )
    sizes = {
        part: 2 if part.endswith(("layers", "heads")) else 48
        for side in ("encoder", "decoder", "speech_encoder", "t2u_encoder", "t2u_decoder")
        for part in (f"{side}_layers", f"{side}_attention_heads", f"{side}_ffn_dim")
    }
    config = t.SeamlessM4Tv2Config(
        **sizes,
        hidden_size=32,
        vocab_size=len(tokenizer),
        t2u_vocab_size=16,
        char_vocab_size=16,
        max_position_embeddings=48,
        t2u_max_position_embeddings=48,
        speech_encoder_intermediate_size=48,
        feature_projection_input_dim=16,
        conv_depthwise_kernel_size=7,
        adaptor_kernel_size=8,
        t2u_variance_predictor_embed_dim=32,
        t2u_variance_predictor_hidden_dim=8,
        upsample_initial_channel=32,
        unit_hifi_gan_vocab_size=16,
        unit_embed_dim=8,
        lang_embed_dim=4,
        spkr_embed_dim=4,
        vocoder_num_langs=3,
        vocoder_num_spkrs=2,
    )
    model = t.SeamlessM4Tv2Model(config)
    ids = {code: tokenizer.convert_tokens_to_ids(f"__{code}__") for code in codes}
    model.generation_config.text_decoder_lang_to_code_id = ids
    keep_as_written(model.generation_config)
    extractor = t.SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
    return _save(folder, model, t.SeamlessM4TProcessor(extractor, tokenizer))


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
    "seamless_m4t": make_seamless_m4t,
    **({"cohere_asr": make_cohere_asr} if there("CohereAsrFeatureExtractor") else {}),
    **({"canary": make_canary} if there("ParakeetFeatureExtractor") else {}),
}
