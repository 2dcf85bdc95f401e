"""Loading a speech-LLM by folder or hub name, frozen and ready to be steered.

base = load_speech_llm("openai/whisper-base")
base.model     the transformers model: eval, no gradients
base.family    how its prompts, labels and transcripts are made
base.revision  what pins its weights: the hub's commit, or a hash of the folder

A base that many ranks share is not loaded whole anywhere: `filled=False` gives its model without data
and says where each weight lies; `placement` reads from there what a rank keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.bitsandbytes import keep_as_loaded
from salsa_dist.libraries.transformers import listed_class, without_adapter
from salsa_dist.speech_llms import (
    any_chat,
    ctc,
    gemma,
    glm_asr,
    granite_speech,
    kyutai,
    omniasr,
    phi4_multimodal,
    qwen2_5_omni,
    qwen2_audio,
    qwen3_asr,
    qwen3_omni,
    seamless_m4t,
    seq2seq,
    vibevoice_asr,
    voxtral,
    voxtral_realtime,
    whisper,
)
from salsa_dist.speech_llms import quantization as quantizing
from salsa_dist.speech_llms.base_config import advice, known_config
from salsa_dist.speech_llms.base_files import base_revision
from salsa_dist.speech_llms.built_in_lora import add_lora, lora_files
from salsa_dist.speech_llms.family import Checkpoint, Family, FamilyOptions
from salsa_dist.speech_llms.precision import own_dtype
from salsa_dist.speech_llms.processor import (
    load_processor,
    refuse_failing,
    refuse_incomplete,
    refuse_other_features,
)
from salsa_dist.speech_llms.reading_base import reading_base
from salsa_dist.speech_llms.sources import Source
from salsa_dist.speech_llms.unfilled import Unfilled, unfilled
from salsa_dist.speech_llms.weight_files import refuse_other_weights
from salsa_dist.steering.sites import by_site, find_layers, layer_counts, select

_FAMILIES: tuple[type[Family], ...] = (
    whisper.Whisper,
    qwen2_audio.Qwen2Audio,
    qwen3_asr.Qwen3ASR,
    voxtral.Voxtral,
    granite_speech.GraniteSpeech,
    qwen2_5_omni.Qwen25Omni,
    qwen3_omni.Qwen3Omni,
    glm_asr.GlmAsr,
    gemma.Gemma,
    phi4_multimodal.Phi4Multimodal,
    vibevoice_asr.VibeVoiceAsr,
    omniasr.OmniAsr,
    seq2seq.Seq2Seq,
    seamless_m4t.SeamlessM4T,
    ctc.Ctc,
    kyutai.Kyutai,
    voxtral_realtime.VoxtralRealtime,
)
FAMILIES = {model_type: family for family in _FAMILIES for model_type in family.MODEL_TYPES}


@dataclass
class SpeechLLM:
    """A frozen base, whole on one device, or with its weights still in their files.

    Attributes:
        model: the transformers model; on the meta device where `sources` is not None.
        family: makes its batches and reads its output; holds no weights.
        name: the folder or hub name that it was loaded by.
        revision: hub commit, or `local-` and a hash of the folder's config and weights.
        parameters: how many numbers it has.
        layers: paths of layer lists that are not found by structure; see `find_layers`.
        quantization: how its linear weights were quantised while it was loaded (`quantization.py`);
            None: they are as stored.
        sources: by its name in `model`, where each weight lies; None: the model is whole. A weight
            that the window made shorter is the first rows of what is stored.
        why_whole: where its weights should have stayed in their files, why it is whole; else None.
    """

    model: Any
    family: Family
    name: str
    revision: str
    parameters: int
    layers: Mapping[str, str] = field(default_factory=dict)
    quantization: str | None = None
    sources: Mapping[str, Source] | None = None
    why_whole: str | None = None

    @property
    def window_s(self) -> float:
        return self.family.window_s

    @cached_property
    def layer_lists(self) -> dict[str, nn.ModuleList]:
        """The layer lists that can be steered, by component; found once, see `find_layers`."""
        return find_layers(self.model, self.layers)

    @cached_property
    def sites(self) -> dict[str, nn.Module]:
        """Every site with the module whose output is steered there."""
        return by_site(self.layer_lists)

    @property
    def has_encoder_sites(self) -> bool:
        """Whether layers of the encoder can be steered: below the first steered one lies a prefix that
        adapters can share."""
        return "encoder" in self.layer_lists

    def select(self, words: str) -> list[str]:
        """The sites that an expression such as `encoder:last-half` names; see `sites.select`."""
        return select(words, layer_counts(self.layer_lists))


def load_speech_llm(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    window_s: float | None = None,
    prompt: str | None = None,
    language_as: Mapping[str, str] | None = None,
    layers: Mapping[str, str] | None = None,
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    copy: Path | None = None,
    filled: bool = True,
    silence_stride: int | Literal["auto"] = 1,
) -> SpeechLLM:
    """Load a base through transformers' public classes, without remote code.

    Args:
        name: a folder with a Hugging Face checkpoint, or a hub name.
        revision: hub branch, tag or commit.
        dtype: precision of the weights; None: the checkpoint's own on a GPU, float32 on the CPU.
        quantization: int8, bnb8 or nf4: quantise the linear weights (`quantization.py`); such a base
            comes whole, on `device`.
        window_s: audio window in seconds; None: the base's own.
        prompt: an instruction in place of the authors' own; `{language}` stands for the name.
        language_as: languages to announce to the base as another.
        layers: paths of layer lists that are not found by structure.
        device: where the weights go; None: a GPU where there is one, else the CPU.
        attn_implementation: transformers' name of it, such as flash_attention_2; None: its own choice.
        copy: a folder with the same files to read them from, such as one on this node's own disk.
        filled: False leaves the weights in their files; a base whose checkpoint does not let them be
            read one by one (see `unfilled`) comes whole all the same, on the CPU.
        silence_stride: keep 1 in this many positions of the trailing padding (`thin_silence`); auto:
            all, until the family is told otherwise (`training/silence_stride.py`).

    Raises:
        UserError: no window, no such base, a base of an unknown family, one that wants remote code, or
            one whose checkpoint lacks weights.

    >>> base = load_speech_llm("whisper-base", window_s=1)
    >>> base.window_s, sorted(base.sites)[0]
    (1.0, 'encoder.0')
    """
    name = os.path.expanduser(name)
    if window_s is not None and not 0 < window_s < math.inf:
        raise UserError(f"window_s is {window_s:g}: give the seconds of an audio window, above 0")
    options = FamilyOptions(window_s, prompt, language_as or {}, silence_stride)
    files = (name, revision) if copy is None else (str(copy), None)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    config = known_config(name, files, **attention)
    refuse_authors_layout(name, config)
    family_class = family_of(config.model_type)
    refuse_stride(name, config.model_type, silence_stride)
    own_method = quantizing.own_method(config)
    quantizing.refuse_twice(name, quantization, own_method)
    cls = model_class(config, family_class.MODEL_CLASS)
    if not takes_audio(cls):
        raise UserError(f"base {name} is a {cls.__name__}, which takes no audio: name a speech-LLM")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = own_dtype(config, device) if dtype is None else getattr(torch, dtype)
    sources: Mapping[str, Source] | None = None
    processor = load_processor(name, files, family_class.load_processor)
    refuse_other_features(name, config, processor, family_class.RESAMPLES)
    if family_class is any_chat.AnyChat:
        refuse_incomplete(name, config, processor)
    quantized = quantizing.loading(quantization, own_method, device, precision)
    lora = lora_files(name, config, files, family_class.LORA)
    if lora is not None and (quantization or own_method):
        raise UserError(
            f"base {name}: its LoRA for speech can't be added to quantised weights: leave "
            "base.quantization out, and take the checkpoint that is not quantised"
        )
    what_to_do = advice(config.transformers_version)
    with reading_base(name, advice=what_to_do), without_adapter() if lora else nullcontext():
        described: Unfilled | str | None = None
        if not filled:
            added = "its weights are quantised" if quantized else "it has a LoRA" if lora else None
            described = added or unfilled(cls, config, *files, precision)
        if not isinstance(described, Unfilled):
            model, info = cls.from_pretrained(
                files[0],
                revision=files[1],
                dtype=precision,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told in `info`, and refused
                **attention,
                **quantized,
            )
        else:
            model, info, sources = described.model, described.loading_info, described.sources
    refuse_other_weights(name, model, info)
    if lora is not None:
        add_lora(model, name, *lora)
    checkpoint = Checkpoint(name, model.config, processor, getattr(model, "generation_config", None))
    family = family_class(checkpoint, options)
    # eval: no dropout, no layerdrop, no BatchNorm updates in a frozen base.
    model.eval().requires_grad_(False)
    if quantized:
        keep_as_loaded(model)
    family.fit(model)
    refuse_failing(name, family)
    if checkpoint.generation is not None:
        model.generation_config.max_length = None  # each call says how many tokens it wants
    return SpeechLLM(
        model=model.to(device) if filled and not quantized else model,
        family=family,
        name=name,
        revision=base_revision(name, revision, fetched=copy is not None),
        parameters=model.num_parameters(),  # of 4 bits, two share a byte
        layers=layers or {},
        quantization=quantization,
        sources=sources,
        why_whole=described if isinstance(described, str) else None,
    )


def family_of(model_type: str) -> type[Family]:
    """The family of a `model_type`; of one without a file, what its processor tells is tried."""
    return FAMILIES.get(model_type, any_chat.AnyChat)


def takes_audio(model_class: Any) -> bool:
    """Whether a model of this class takes audio, as transformers itself says."""
    modalities = getattr(model_class, "input_modalities", ())
    return "audio" in modalities or model_class.main_input_name in ("input_features", "input_values")


def refuse_authors_layout(name: str, config: Any) -> None:
    """Refuse a checkpoint in a layout of its authors' own package, before its weights are read.

    Raises:
        UserError: transformers has its type and not this layout, so it would take default sizes.
    """
    if isinstance(getattr(config, "thinker_config", None), dict):
        raise UserError(
            f"base {name} is a {config.model_type} in the layout of its authors' own package, which "
            "transformers does not read: name their checkpoint for transformers, such as "
            "Qwen/Qwen3-ASR-1.7B-hf for Qwen/Qwen3-ASR-1.7B"
        )


def refuse_stride(name: str, model_type: str, silence_stride: int | Literal["auto"]) -> None:
    """Refuse `silence_stride`, before weights are read, for a base without trailing padding.

    Raises:
        UserError: it has none, or none that can be thinned.
    """
    if silence_stride not in (1, "auto") and not family_of(model_type).THINS_PADDING:
        raise UserError(
            f"training.silence_stride is {silence_stride}, and base {name} has no trailing padding, "
            "which Whisper has: set it to 1"
        )


def model_class(config: Any, named: str | None) -> Any:
    """The transformers class that reads speech and writes text.

    Args:
        config: of the checkpoint.
        named: its name, where the family knows better than transformers' own tables.
    """
    import transformers

    if named is not None:
        return getattr(transformers, named)
    return listed_class(config) or getattr(transformers, config.architectures[0])
