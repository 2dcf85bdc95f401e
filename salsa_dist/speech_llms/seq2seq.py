"""Moonshine, Cohere Transcribe and Canary: an encoder of the clip's own length and a decoder.

    decoder input   <s>                                                текст …        Moonshine
                    ▁<|startofcontext|> … <|el|><|el|><|pnc|> …        текст …        Cohere, Canary
    label                                                              текст …  </s>

Element of an encoder layer's output: one clip. What is padded behind it must not change it: Canary's
and Cohere's encoders have masks that see to it; for the others see `moonshine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages, moonshine
from salsa_dist.speech_llms.encoder_decoder import EncoderDecoder
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, extracted, side_by_side
from salsa_dist.speech_llms.window import audio_of, longest

# Cohere's feature extractor cuts longer clips in parts; the others take more.
_WINDOW_S = 30.0


class Seq2Seq(EncoderDecoder):
    """The prompt is the processor's own for a transcript with punctuation; a language that it does not
    know is announced as English, or as `language_as` says. Moonshine's names no language."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = (
        "moonshine",
        "moonshine_streaming",
        "cohere_asr",
        "canary",
    )

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        super().__init__(checkpoint, options)
        config = checkpoint.config
        if options.prompt is not None:
            raise UserError("base.prompt: this base takes no instruction: remove it")
        self.kind: str = config.model_type
        self.processor = checkpoint.processor
        self.window_s = longest(_WINDOW_S, options.window_s)
        self.pad: int = self.eos if config.pad_token_id is None else config.pad_token_id
        self.max_tokens: int = getattr(config, "decoder_config", config).max_position_embeddings
        self._prompts = self.requests(checkpoint)
        self.languages = sorted(self._prompts)

    def requests(self, checkpoint: Checkpoint) -> dict[str, list[int]]:
        """The prompt of each language that the base knows, by its code."""
        prompts = {}
        for code in languages.named():
            try:
                prompts[code] = self._asked(code)
            except ValueError:
                continue  # as the processor says of a language that the base does not know
        return prompts

    def _asked(self, code: str) -> list[int]:
        """Token ids of the processor's own request, or the start token alone."""
        processor, ids = self.processor, []
        if hasattr(processor, "get_decoder_prompt_ids") and self.kind == "cohere_asr":
            ids = processor.get_decoder_prompt_ids(language=code)
        elif hasattr(processor, "apply_transcription_request"):
            silence = np.zeros(SAMPLE_RATE // 10, np.float32)
            ids = processor.apply_transcription_request(silence, code)["decoder_input_ids"][0].tolist()
        # `generate` puts the start token before a prompt that does not begin with it.
        return ids if ids[:1] == [self.start] else [self.start, *ids]

    def fit(self, model: Any) -> None:
        """Make what Moonshine's encoder, and MoonshineStreaming's decoder, do depend on one clip."""
        if self.kind == "moonshine":
            moonshine.own_frames_norm(model.get_encoder())
        elif self.kind == "moonshine_streaming":
            moonshine.keep_what_is_read(model.get_decoder())

    def announced(self, language: str) -> str:
        """The language that the prompt names."""
        asked = self.language_as.get(language)
        if asked is not None and asked not in self._prompts:
            known = ", ".join(self.languages)
            raise UserError(
                f"base.language_as: this base knows no language {asked!r}; known are {known}"
            )
        return asked or languages.first_known(language, self._prompts) or "en"

    def stand_in(self, language: str) -> str | None:
        told = self.announced(language)
        known = language in self.language_as or told in languages.parts(language)
        if known or len(set(map(tuple, self._prompts.values()))) == 1:
            return None
        return (
            f"language {language}: this base does not know it, {told} is announced; "
            f"base.language_as, or transcribe --language-as {language}=CODE, names another"
        )

    def prompt(self, language: str) -> list[int]:
        return self._prompts[self.announced(language)]

    def audio(self, clips: Sequence[Clip], kept: bool = False) -> dict[str, Tensor]:
        return side_by_side([self._process(clip) for clip in clips])

    def _process(self, clip: Clip) -> Processed:
        audio, counted = audio_of(clip, self.window_s), None
        if self.kind == "moonshine":
            audio, counted = moonshine.whole_frames(audio)
        elif self.kind == "moonshine_streaming":
            audio, counted = moonshine.silence_behind(audio)
        features = extracted(self.processor.feature_extractor, audio)
        if counted is not None:
            features["attention_mask"] = (torch.arange(len(audio)) < counted).long()[None]
        return Processed(features, 0)
