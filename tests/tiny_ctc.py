"""Complete tiny checkpoints of encoders with CTC, in the files that their publishers have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_weights import randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрстуфхцчшщъьюя'"


def make_wav2vec2(folder: Path) -> Path:
    """wav2vec2-large, whose convolutions are normalised per position."""
    import transformers as t

    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    return _facebook(folder, t.Wav2Vec2ForCTC, t.Wav2Vec2Config(**_encoder(), **large))


def make_hubert(folder: Path) -> Path:
    """HuBERT-base, whose first convolution is normalised over time."""
    import transformers as t

    return _facebook(folder, t.HubertForCTC, t.HubertConfig(**_encoder()))


def make_parakeet_ctc(folder: Path) -> Path:
    """Parakeet CTC, with word pieces and the blank behind them."""
    import transformers as t

    tokenizer = _pieces(["<unk>", *"▁", *LETTERS, "▁л", "ек", "но"], behind=["<pad>"])
    config = t.ParakeetCTCConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        encoder_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "subsampling_conv_channels": 8,
            "num_mel_bins": 16,
        },
    )
    extractor = t.ParakeetFeatureExtractor(feature_size=16)
    return _save(folder, t.ParakeetForCTC(config), extractor, tokenizer, "ParakeetProcessor")


def make_omniasr_ctc(folder: Path) -> Path:
    """OmniASR-CTC: letters of many scripts, the blank before them."""
    import transformers as t

    tokenizer = _pieces(["<s>", "<pad>", "</s>", "<unk>", *"▁", *LETTERS])
    audio = {**_encoder(), "model_type": "omniasr_audio"}
    config = t.OmniASRCTCConfig(vocab_size=len(tokenizer), audio_config=audio)
    extractor = t.OmniASRFeatureExtractor()
    return _save(folder, t.OmniASRForCTC(config), extractor, tokenizer, "OmniASRCTCProcessor")


def make_omniasr(folder: Path) -> Path:
    """OmniASR-LLM: the language is a token, and so is the one for any."""
    import transformers as t

    marks = ["<extra_id_0>", "<extra_id_1>"]
    marks += [f"<|lang:{code}|>" for code in ("auto", "bul_cyrl", "ell_grek", "eng_latn")]
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    raw.add_special_tokens([*words[:4], *marks])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **names)
    config = t.OmniASRConfig(
        audio_config={**_encoder(), "model_type": "omniasr_audio"},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids("<extra_id_1>"),
    )
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns = namespace(language='auto') %}"
        "{% for c in m['content'] %}{% if c['type'] == 'audio' %}<extra_id_1>"
        "{% elif c['type'] == 'language' %}{% set ns.language = c['language'] | lower %}{% endif %}"
        "{% endfor %}<extra_id_0><|lang:{{ ns.language }}|><s>"
        "{% elif m['role'] == 'assistant' %}{% for c in m['content'] if c['type'] == 'text' %}"
        "{{ c['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"
    )
    torch.manual_seed(0)
    model = randomise(t.OmniASRForConditionalGeneration(config))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 2
    model.save_pretrained(folder)
    extractor = t.OmniASRFeatureExtractor()
    t.OmniASRProcessor(extractor, tokenizer, chat_template=template).save_pretrained(folder)
    return folder


def _encoder() -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }


def _facebook(folder: Path, model_class: Any, config: Any) -> Path:
    """vocab.json and a tokenizer in Python: letters, `|` between words."""
    import transformers as t

    folder.mkdir(parents=True)
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    tokenizer = t.Wav2Vec2CTCTokenizer(folder / "vocab.json")
    config.vocab_size, config.pad_token_id = len(words), 0
    layers = config.feat_extract_norm == "layer"
    extractor = t.Wav2Vec2FeatureExtractor(return_attention_mask=layers)
    return _save(folder, model_class(config), extractor, tokenizer, "Wav2Vec2Processor")


def _pieces(words: list[str], behind: list[str] | None = None) -> Any:
    from transformers import ParakeetTokenizer

    merges = [(w[0], w[1]) for w in words if len(w) == 2]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens(behind or [w for w in words if w.startswith("<")])
    return ParakeetTokenizer(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")


def _save(folder: Path, model: Any, extractor: Any, tokenizer: Any, processor: str) -> Path:
    torch.manual_seed(0)
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor._processor_class = processor
    extractor.save_pretrained(folder)
    return folder


def there(extractor: str) -> bool:
    """Whether this transformers has a feature extractor; the one of 5.17 for Parakeet needs librosa."""
    import transformers

    try:
        getattr(transformers, extractor)()
    except (AttributeError, ImportError):
        return False
    return True


OMNIASR: dict[str, Callable[[Path], Path]] = (
    {"omniasr": make_omniasr} if there("OmniASRFeatureExtractor") else {}
)
CTC: dict[str, Callable[[Path], Path]] = {
    "wav2vec2": make_wav2vec2,
    "hubert": make_hubert,
    **({"parakeet_ctc": make_parakeet_ctc} if there("ParakeetFeatureExtractor") else {}),
    **({"omniasr_ctc": make_omniasr_ctc} if there("OmniASRFeatureExtractor") else {}),
}
