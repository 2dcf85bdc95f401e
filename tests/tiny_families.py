"""Complete tiny checkpoints of each family, made here: config, weights, tokenizer, processor.

Weights are random, widths differ between encoder and LLM on purpose, windows are short. `FAMILIES`
names the function that writes each; Voxtral's is missing where mistral-common is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tiny import make_base
from tiny_weights import randomise
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END, TURN = "<|endoftext|>", "<|im_end|>"
CHATML = (END, "<|im_start|>", TURN)


def make_qwen2_audio(folder: Path) -> Path:
    """Qwen2-Audio-Instruct with a 2 s window."""
    import transformers as t

    special = [*CHATML, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer = byte_tokenizer(special)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    config = t.Qwen2AudioConfig(
        audio_config=_whisper_like(d_model=24),
        text_config=_qwen_like("qwen2", len(tokenizer)),
        audio_token_index=ids["<|AUDIO|>"],
    )
    model = _random(t.Qwen2AudioForConditionalGeneration, config)
    extractor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return _save(folder, model, t.Qwen2AudioProcessor(extractor, tokenizer), ids)


def make_qwen3_asr(folder: Path) -> Path:
    """Qwen3-ASR; its one-second chunks and 800-frame attention windows are as they are."""
    import transformers as t

    special = [*CHATML, "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>", "<asr_text>"]
    tokenizer = byte_tokenizer(
        special,
        audio_token="<|audio_pad|>",
        audio_bos_token="<|audio_start|>",
        audio_eos_token="<|audio_end|>",
    )
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    audio = {k: v for k, v in _whisper_like(24).items() if k != "max_source_positions"}
    config = t.Qwen3ASRConfig(
        audio_config={**audio, "output_dim": 32, "downsample_hidden_size": 4, "n_window_infer": 200},
        text_config=_qwen_like("qwen3", len(tokenizer)),
        audio_token_id=ids["<|audio_pad|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|endoftext|>"], ids["<|im_end|>"]],
    )
    model = _random(t.Qwen3ASRForConditionalGeneration, config)
    template = (
        "<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content[0].text }}"
        "{% endif %}<|im_end|>\n"
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% for c in m.content %}{% if c.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    extractor = t.Qwen3ASRFeatureExtractor(feature_size=16)
    processor = t.Qwen3ASRProcessor(extractor, tokenizer, chat_template=template)
    return _save(folder, model, processor, ids)


def make_voxtral(folder: Path) -> Path:
    """Voxtral with 2 s chunks and Mistral's own tokenizer file."""
    import transformers as t

    words = write_tekken(
        folder, {24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"}, chunk_length_s=2.0
    )
    tokenizer = t.MistralCommonBackend.from_pretrained(folder)
    audio = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    }
    config = t.VoxtralConfig(
        audio_config=audio, text_config=_qwen_like("llama", words), audio_token_id=24
    )
    model = _random(t.VoxtralForConditionalGeneration, config)
    extractor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return _save(folder, model, t.VoxtralProcessor(extractor, tokenizer), {END: 11, TURN: 2})


def make_granite_speech_plus(folder: Path) -> Path:
    """Granite-Speech Plus, whose projector reads a layer beside the last."""
    return make_granite_speech(folder, "GraniteSpeechPlus", cat_hidden_layers=[1])


def make_granite_speech(folder: Path, name: str = "GraniteSpeech", **encoder: Any) -> Path:
    """Granite-Speech without the LoRA that the real ones carry."""
    import transformers as t

    special = ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|audio|>"]
    tokenizer = byte_tokenizer(special)
    tokenizer.chat_template = (
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}"
        "<|end_of_text|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
    )
    config = getattr(t, f"{name}Config")(
        encoder_config={
            "input_dim": 160,
            "num_layers": 2,
            "hidden_dim": 24,
            "num_heads": 2,
            "output_dim": 6,
            "context_size": 20,
            "max_pos_emb": 32,
            "conv_kernel_size": 7,
            "feedforward_mult": 2,
            **encoder,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 24,
            "encoder_hidden_size": 24 * (1 + len(encoder)),
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        text_config={k: v for k, v in _qwen_like("granite", len(tokenizer)).items() if k != "head_dim"},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
        tie_word_embeddings=False,
    )
    model = _random(getattr(t, f"{name}ForConditionalGeneration"), config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    end = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    processor = t.GraniteSpeechProcessor(t.GraniteSpeechFeatureExtractor(), tokenizer)
    return _save(folder, model, processor, {END: end, TURN: end})


def make_qwen2_5_omni(folder: Path) -> Path:
    """Qwen2.5-Omni's thinker, its vision tower as small as it can be."""
    import transformers as t

    special = [
        *CHATML,
        "<|AUDIO|>",
        "<|audio_bos|>",
        "<|audio_eos|>",
        "<|vision_bos|>",
        "<|IMAGE|>",
        "<|VIDEO|>",
    ]
    tokenizer = byte_tokenizer(special)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    text = _qwen_like("qwen2_5_omni_text", len(tokenizer))
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    config = t.Qwen2_5OmniThinkerConfig(
        audio_config={**_whisper_like(24), "output_dim": 32, "n_window": 25},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        text_config=text,
        audio_token_index=ids["<|AUDIO|>"],
        image_token_index=ids["<|IMAGE|>"],
        video_token_index=ids["<|VIDEO|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
    )
    model = _random(t.Qwen2_5OmniThinkerForConditionalGeneration, config)
    t.WhisperFeatureExtractor(feature_size=16, chunk_length=300).save_pretrained(folder)
    return _save(folder, model, tokenizer, ids)


def make_qwen3_omni(folder: Path) -> Path:
    """Qwen3-Omni's thinker with four experts, its vision tower as small as it can be."""
    import transformers as t

    marks = ["<|audio_pad|>", "<|audio_start|>", "<|audio_end|>", "<|vision_start|>"]
    special = [*CHATML, *marks, "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(special)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    text = _qwen_like("qwen3_omni_moe_text", len(tokenizer))
    text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    audio = {**_whisper_like(24), "output_dim": 32, "downsample_hidden_size": 4, "n_window_infer": 200}
    config = t.Qwen3OmniMoeThinkerConfig(
        audio_config=audio,
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=text,
        audio_token_id=ids["<|audio_pad|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        audio_start_token_id=ids["<|audio_start|>"],
        vision_start_token_id=ids["<|vision_start|>"],
    )
    model = _random(t.Qwen3OmniMoeThinkerForConditionalGeneration, config)
    # Sampled anew: with these weights the suite's steps send no token to another expert.
    torch.manual_seed(0)
    randomise(model)
    t.WhisperFeatureExtractor(feature_size=16, chunk_length=300).save_pretrained(folder)
    return _save(folder, model, tokenizer, ids)


def make_glm_asr(folder: Path) -> Path:
    """GLM-ASR with 2 s windows."""
    import transformers as t

    roles = ["<|user|>", "<|assistant|>", "<|observation|>"]
    special = [END, *roles, "<|pad|>", "<|begin_of_audio|>", "<|end_of_audio|>"]
    tokenizer = byte_tokenizer(special)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    stop = [ids[END], ids["<|user|>"], ids["<|observation|>"]]
    config = t.GlmAsrConfig(
        audio_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 96,  # four positions side by side
            "num_mel_bins": 16,
            "max_position_embeddings": 100,
        },
        text_config={**_qwen_like("llama", len(tokenizer)), "eos_token_id": stop},
        audio_token_id=ids["<|pad|>"],
    )
    model = _random(t.GlmAsrForConditionalGeneration, config)
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{% for c in m.content %}{% if c.type == 'audio' %}"
        "<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\n"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{{ '' }}{% endif %}"
    )
    extractor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = t.GlmAsrProcessor(extractor, tokenizer, chat_template=template, max_audio_len=21)
    return _save(folder, model, processor, {END: ids[END], TURN: ids["<|user|>"]})


def make_audioflamingo3(folder: Path) -> Path:
    """AudioFlamingo3 with 2 s windows; it has no file of ours."""
    import transformers as t

    tokenizer = byte_tokenizer([*CHATML, "<sound>"], eos_token=TURN)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in [*CHATML, "<sound>"]}
    audio = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    }
    config = t.AudioFlamingo3Config(
        audio_config=audio,
        text_config=_qwen_like("qwen2", len(tokenizer)),
        audio_token_id=ids["<sound>"],
    )
    model = _random(t.AudioFlamingo3ForConditionalGeneration, config)
    template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
        "{% if c.type == 'audio' %}<sound>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    extractor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = t.AudioFlamingo3Processor(
        extractor, tokenizer, chat_template=template, max_audio_len=21
    )
    return _save(folder, model, processor, ids)


def make_fun_asr_nano(folder: Path) -> Path:
    """Fun-ASR-Nano; it has no file of ours. The template is the publisher's, but for hotwords."""
    import transformers as t

    tokenizer = byte_tokenizer([*CHATML, "<|object_ref_start|>"], eos_token=TURN)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in [*CHATML, "<|object_ref_start|>"]}
    heads = {"num_attention_heads": 2, "intermediate_size": 48}
    config = t.FunAsrNanoConfig(
        audio_config={
            **heads,
            "model_type": "fun_asr_nano_encoder",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_timestamp_prediction_layers": 1,
            "num_mel_bins": 16,
        },
        adaptor_config={
            **heads,
            "hidden_size": 32,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "projector_hidden_size": 32,
        },
        text_config=_qwen_like("qwen3", len(tokenizer)),
        audio_token_id=ids["<|object_ref_start|>"],
    )
    model = _random(t.FunAsrNanoForConditionalGeneration, config)
    template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{{ m.content[0].text }}{% else %}"
        "{% set told = namespace(language='') %}{% for c in m.content %}"
        "{% if c.type == 'language' %}{% set told.language = '成' + c.language %}{% endif %}"
        "{% endfor %}语音转写{{ told.language }}：{% for c in m.content %}"
        "{% if c.type == 'audio' %}<|object_ref_start|>{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    extractor = t.FunAsrNanoFeatureExtractor(feature_size=16, chunk_length=2)
    return _save(folder, model, t.FunAsrNanoProcessor(extractor, tokenizer, template), ids)


def make_vibevoice_asr(folder: Path) -> Path:
    """VibeVoice-ASR with its hop of 3,200 samples, here a second; its stages have one block each."""
    import transformers as t

    special = [*CHATML, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|image_pad|>"]
    tokenizer = byte_tokenizer(special)
    ids = {s: tokenizer.convert_tokens_to_ids(s) for s in special}
    encoder = {
        "model_type": "vibevoice_acoustic_tokenizer_encoder",
        "num_filters": 2,
        "downsampling_ratios": [8, 8, 10, 5],
        "depths": [1] * 5,
        "ffn_expansion": 2,
        "layer_scale_init_value": 0.5,
    }
    config = t.VibeVoiceAsrConfig(
        acoustic_tokenizer_encoder_config={**encoder, "hidden_size": 8},
        semantic_tokenizer_encoder_config={**encoder, "hidden_size": 16},
        text_config=_qwen_like("qwen2", len(tokenizer)),
        audio_token_id=ids["<|box_start|>"],
        audio_bos_token_id=ids["<|object_ref_start|>"],
        audio_eos_token_id=ids["<|object_ref_end|>"],
        acoustic_tokenizer_chunk_size=6_400,
    )
    model = _random(t.VibeVoiceAsrForConditionalGeneration, config)
    asked = "lease transcribe it with these keys: Start time, End time, Speaker ID, Content"
    template = (
        "<|im_start|>system\nYou are a helpful assistant that transcribes audio input into text output "
        "in JSON format.<|im_end|>{% for m in messages %}{% if m.role == 'user' %}{{ '\n' }}"
        "<|im_start|>user{{ '\n' }}{% set texts = m.content | selectattr('type', 'equalto', 'text') "
        "| list %}{% for c in m.content %}{% if c.type == 'audio' %}<|object_ref_start|><|box_start|>"
        "<|object_ref_end|>{{ '\n' }}This is a <|AUDIO_DURATION|> seconds audio, {% if texts %}with "
        f"extra info: {{{{ texts[0].text }}}}\n\nP{asked}{{% else %}}p{asked}{{% endif %}}"
        "{% endif %}{% endfor %}<|im_end|>{{ '\n' }}{% endif %}{% endfor %}"
    )
    extractor = t.VibeVoiceAcousticTokenizerFeatureExtractor(sampling_rate=3_200)
    model.generation_config.pad_token_id = ids["<|image_pad|>"]
    model.generation_config.eos_token_id = ids[END]
    model.save_pretrained(folder)
    t.VibeVoiceAsrProcessor(extractor, tokenizer, template).save_pretrained(folder)
    return folder


def write_tekken(folder: Path, control: dict[int, str], letters: str = "", **audio: Any) -> int:
    """Mistral's own tokenizer file: control tokens by their number, then every byte and some letters.

    Returns how many tokens it has. `audio` are settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    names = {token["rank"]: str(token["token_str"]) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS}
    names |= control
    reserved = 40
    tokens = [*(bytes([i]) for i in range(256)), *(letter.encode() for letter in letters)]
    tekken = {
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": i, "token_str": names.get(i, f"<SPECIAL_{i}>"), "is_control": True}
            for i in range(reserved)
        ],
        "config": {
            "pattern": r"[\s\S]",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + reserved,
            "default_num_special_tokens": reserved,
            "version": "v7",
        },
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 16, "hop_length": 160, "window_size": 400},
            **audio,
        },
    }
    (folder / "tekken.json").write_text(json.dumps(tekken))
    return len(tokens) + reserved


def byte_tokenizer(special: list[str], **names: str) -> Any:
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
    torch.manual_seed(0)
    return randomise(model_class(config))


def _save(folder: Path, model: Any, processor: Any, ids: dict[str, int]) -> Path:
    model.generation_config.pad_token_id = ids[END]
    model.generation_config.eos_token_id = [ids[END], ids[TURN]]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "whisper": make_base,
    "qwen2_audio": make_qwen2_audio,
    "qwen3_asr": make_qwen3_asr,
    "granite_speech": make_granite_speech,
    "qwen2_5_omni": make_qwen2_5_omni,
    "qwen3_omni": make_qwen3_omni,
    "glm_asr": make_glm_asr,
    "audioflamingo3": make_audioflamingo3,
    **({"voxtral": make_voxtral} if find_spec("mistral_common") else {}),
}
# On the conformance suite, and not on the longer runs that every one of FAMILIES goes through.
MORE: dict[str, Callable[[Path], Path]] = {
    "granite_speech_plus": make_granite_speech_plus,
    "fun_asr_nano": make_fun_asr_nano,
    "vibevoice_asr": make_vibevoice_asr,
}
