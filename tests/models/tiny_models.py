"""Tiny random models of every architecture that discovery must know, one line each.

    MODELS["Voxtral"].build()  ->  VoxtralForConditionalGeneration, some 30 k numbers

A model is made from its own default config: every sub-config is shrunk by the names of its fields, and
what can't be seen from a name stands in that model's line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModel
from transformers.models.gemma3n import modeling_gemma3n

SMALL: dict[str, Any] = {
    # width
    **dict.fromkeys(("hidden_size", "d_model", "hidden_dim", "encoder_hidden_size", "output_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "downsample_hidden_size"), 16
    ),
    # depth
    **dict.fromkeys(
        ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_blocks"), 3
    ),
    **dict.fromkeys(
        ("speech_encoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers"), 3
    ),
    "conf_num_hidden_layers": 3,
    "depth": 1,
    # heads
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "num_heads", "encoder_attention_heads"), 2
    ),
    **dict.fromkeys(("decoder_attention_heads", "speech_encoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads"), 2),
    **dict.fromkeys(("encoder_num_key_value_heads", "decoder_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head"), 16),
    # the rest
    **dict.fromkeys(("vocab_size", "text_vocab_size"), 320),
    "num_mel_bins": 16,
    "max_source_positions": 100,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "audio_token_id": 10,
    "audio_token_index": 10,
    "layer_types": None,
    # convolutions
    **dict.fromkeys(("subsampling_conv_channels",), 8),
}


@dataclass(frozen=True)
class TinyModel:
    """One architecture.

    Attributes:
        architecture: the transformers class.
        changes: config fields, by dotted path, that `SMALL` does not get right.
        encoder, llm: paths of the layer lists; None where there is none to steer.
        rows: what one row of an encoder layer's output is.
        minds_padding: components whose activations padding changes.
        since: the first transformers in which all of this is so; before it the model is not tested.
    """

    architecture: str
    encoder: str | None
    llm: str | None
    rows: str = "sample"
    changes: Mapping[str, Any] = field(default_factory=dict)
    minds_padding: tuple[str, ...] = ()
    since: str = "5.17"

    def config(self) -> Any:
        config_class = getattr(transformers, self.architecture).config_class
        config = config_class()
        tree = shrink(config.to_dict())
        for path, value in self.changes.items():
            node = tree
            *parents, last = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        config = config_class.from_dict(tree)
        config.architectures = [self.architecture]
        return config

    def build(self, fill: bool = True) -> nn.Module:
        """A model with weights large enough that a change anywhere is seen in the logits.

        `fill` false leaves the weights as transformers makes them.
        """
        torch.manual_seed(0)
        with without_timm():
            model = getattr(transformers, self.architecture)(self.config())
        for name, parameter in model.named_parameters() if fill else ():
            if parameter.ndim > 1 and "embed_positions" not in name:
                nn.init.normal_(parameter, std=0.15)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.05)
        return model.eval().requires_grad_(False)


@contextmanager
def without_timm() -> Iterator[None]:
    """Build Gemma3n without its vision tower, which is another library's."""
    from_config = AutoModel.from_config

    def build(config: Any, **kwargs: Any) -> nn.Module:
        return nn.Identity() if "vision" in config.model_type else from_config(config, **kwargs)

    with patch.object(modeling_gemma3n.AutoModel, "from_config", build):
        yield


def shrink(tree: Any) -> Any:
    """A config's dict with every field that `SMALL` names made small, in all sub-configs."""
    if not isinstance(tree, dict):
        return tree
    return {k: SMALL[k] if k in SMALL else shrink(v) for k, v in tree.items() if k != "auto_map"}


TOWER, LM = "model.audio_tower.layers", "model.language_model.layers"
SEQ2SEQ = ("model.encoder.layers", "model.decoder.layers")

VISION = {"vision_start_token_id": 11}
BOTH = ("encoder", "llm")
MERGED = {"audio_config.intermediate_size": 128}  # four frames side by side

CONVS = {
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
PER_POSITION = CONVS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}

GEMMA4_AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [16, 4],
    "output_proj_dims": 16,
}

EVERY_MODEL = {
    "Whisper": TinyModel("WhisperForConditionalGeneration", *SEQ2SEQ),
    "Qwen2-Audio": TinyModel("Qwen2AudioForConditionalGeneration", TOWER, LM),
    "Voxtral": TinyModel("VoxtralForConditionalGeneration", TOWER, LM, "chunk", MERGED),
    "AudioFlamingo3": TinyModel("AudioFlamingo3ForConditionalGeneration", TOWER, LM, "window"),
    "MusicFlamingo": TinyModel("MusicFlamingoForConditionalGeneration", TOWER, LM, "window"),
    "GLM-ASR": TinyModel("GlmAsrForConditionalGeneration", TOWER, LM, "window", MERGED, BOTH),
    "Qwen3-ASR": TinyModel("Qwen3ASRForConditionalGeneration", TOWER, LM, "token"),
    "Qwen2.5-Omni": TinyModel(
        "Qwen2_5OmniThinkerForConditionalGeneration",
        TOWER,
        LM,
        "token",
        VISION | {"text_config.rope_parameters.mrope_section": [2, 3, 3]},
        since="5.20",
    ),
    "Qwen3-Omni": TinyModel(
        "Qwen3OmniMoeThinkerForConditionalGeneration", TOWER, LM, "token", VISION, since="5.20"
    ),
    "Voxtral-Realtime": TinyModel("VoxtralRealtimeForConditionalGeneration", TOWER, LM),
    "Moss-Transcribe": TinyModel(
        "MossTranscribeDiarizeForConditionalGeneration", TOWER, LM, "window", since="5.20"
    ),
    "FunASR-Nano": TinyModel(
        "FunAsrNanoForConditionalGeneration",
        TOWER,
        LM,
        changes={"adaptor_config.intermediate_size": 8},
        minds_padding=("llm",),
    ),
    "Granite-Speech": TinyModel(
        "GraniteSpeechForConditionalGeneration", SEQ2SEQ[0], LM, minds_padding=BOTH
    ),
    "Phi4-Multimodal": TinyModel(
        "Phi4MultimodalForCausalLM",
        "model.embed_tokens_extend.audio_embed.encoder.encoders",
        "model.layers",
        changes={"audio_config.nemo_conv_channels": 16, "audio_config.ext_pw_out_channel": 32}
        | {"audio_config.depthwise_separable_out_channel": 32, "audio_config.bias_max_distance": 20},
        minds_padding=BOTH,
    ),
    "Gemma3n": TinyModel(
        "Gemma3nForConditionalGeneration",
        "model.audio_tower.conformer",
        LM,
        changes={"text_config.activation_sparsity_pattern": None, "text_config.num_kv_shared_layers": 0}
        | {"text_config.intermediate_size": 48, "text_config.hidden_size_per_layer_input": 8}
        | {"text_config.vocab_size_per_layer_input": 320, "text_config.laurel_rank": 4}
        | {
            "text_config.vocab_size": 448,
            "vision_config.vocab_offset": 320,
            "vision_config.vocab_size": 64,
        }
        | {"audio_config.vocab_offset": 384, "audio_config.vocab_size": 64, "audio_token_id": 400}
        | {"audio_config.sscp_conv_channel_size": [8, 4], "audio_config.input_feat_size": 16}
        | {"audio_soft_tokens_per_image": 16},
        minds_padding=("encoder",),
    ),
    "Gemma4": TinyModel(
        "Gemma4ForConditionalGeneration",
        TOWER,
        LM,
        changes={"text_config.hidden_size_per_layer_input": 8, "text_config.global_head_dim": 16}
        | {"text_config.vocab_size_per_layer_input": 320, "text_config.per_layer_config": {}}
        | {"audio_config": {**GEMMA4_AUDIO}, "vision_config": None},
    ),
    "Canary": TinyModel("CanaryForConditionalGeneration", *SEQ2SEQ),
    "CohereASR": TinyModel("CohereAsrForConditionalGeneration", *SEQ2SEQ),
    "Moonshine": TinyModel("MoonshineForConditionalGeneration", *SEQ2SEQ, minds_padding=BOTH),
    "MoonshineStreaming": TinyModel(
        "MoonshineStreamingForConditionalGeneration",
        *SEQ2SEQ,
        changes={"num_key_value_heads": 2, "encoder_config.sliding_windows": [[16, 4]] * 3},
        minds_padding=BOTH,
        since="5.24",
    ),
    "wav2vec2-large": TinyModel(
        "Wav2Vec2ForCTC", "wav2vec2.encoder.layers", None, changes=PER_POSITION, since="5.24"
    ),
    "HuBERT-base": TinyModel(
        "HubertForCTC",
        "hubert.encoder.layers",
        None,
        changes=CONVS,
        minds_padding=BOTH[:1],
        since="5.24",
    ),
    "Parakeet-CTC": TinyModel("ParakeetForCTC", "encoder.layers", None, since="5.24"),
    "OmniASR-CTC": TinyModel(
        "OmniASRForCTC",
        TOWER,
        None,
        changes={f"audio_config.{k}": v for k, v in CONVS.items()},
        since="5.24",
    ),
    "SeamlessM4Tv2": TinyModel(
        "SeamlessM4Tv2ForSpeechToText",
        "speech_encoder.encoder.layers",
        "text_decoder.layers",
        minds_padding=("llm",),
    ),
    "Granite-Speech-Plus": TinyModel(
        "GraniteSpeechPlusForConditionalGeneration", SEQ2SEQ[0], LM, minds_padding=BOTH
    ),
    "SeamlessM4T": TinyModel(
        "SeamlessM4TForSpeechToText",
        "speech_encoder.encoder.layers",
        "text_decoder.layers",
        minds_padding=("llm",),
    ),
    "Speech2Text": TinyModel("Speech2TextForConditionalGeneration", *SEQ2SEQ, minds_padding=BOTH),
    "SpeechT5": TinyModel(
        "SpeechT5ForSpeechToText",
        "speecht5.encoder.wrapped_encoder.layers",
        "speecht5.decoder.wrapped_decoder.layers",
        minds_padding=BOTH,
    ),
    "VibeVoice-ASR": TinyModel(
        "VibeVoiceAsrForConditionalGeneration",
        None,
        LM,
        changes={
            f"{kind}_tokenizer_encoder_config.{key}": value
            for kind in ("acoustic", "semantic")
            for key, value in {"num_filters": 4, "depths": [1] * 7, "hidden_size": 8}.items()
        },
        since="5.20",
    ),
    "Nemotron-3.5-Transcribe": TinyModel(
        "Nemotron3_5TranscribeForConditionalGeneration",
        "model.audio_tower.asr_encoder.layers",
        LM,
        changes={"audio_config.diarization_config.head_config.audio_hidden_size": 32}
        | {"word_timestamp_config.blank_token_id": 319, "text_config.n_routed_experts": 4}
        | {"text_config.layers_block_type": ["linear_attention", "moe", "full_attention"]}
        | {"text_config.mamba_num_heads": 4, "text_config.mamba_head_dim": 16}
        | {"text_config.n_groups": 2, "text_config.ssm_state_size": 8}
        | {"text_config.moe_shared_expert_intermediate_size": 16},
        since="5.24",
    ),
    "Kyutai": TinyModel(
        "KyutaiSpeechToTextForConditionalGeneration",
        None,
        "model.layers",
        changes={"num_codebooks": 3, "codebook_vocab_size": 33, "audio_bos_token_id": 32}
        | {"audio_pad_token_id": 419, "codec_config.num_filters": 4, "codec_config.codebook_dim": 8}
        | {"codec_config.codebook_size": 32, "codec_config.vector_quantization_hidden_dimension": 8}
        | {"codec_config.upsample_groups": 32, "codec_config.num_quantizers": 3},
    ),
}

# What this transformers has, as described here.
MODELS = {
    name: model
    for name, model in EVERY_MODEL.items()
    if Version(transformers.__version__) >= Version(model.since)
}
