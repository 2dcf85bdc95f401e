"""Moonshine, Cohere Transcribe and Canary: an encoder of the clip's own length and a decoder.

    decoder input   <s>                                                текст …        Moonshine
                    ▁<|startofcontext|> … <|el|><|el|><|pnc|> …        текст …        Cohere, Canary
    label                                                              текст …  </s>

Element of an encoder layer's output: one clip.

What is padded behind a clip must not change it. Canary's and Cohere's encoders have masks that see to
it. Moonshine's normalises over all frames and MoonshineStreaming's looks behind the clip's last frame:
the first is told each clip's own frames, the second gets the same silence behind every clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.chat import Processed, side_by_side
from salsa_dist.speech_llms.encoder_decoder import EncoderDecoder
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.moonshine import keep_what_is_read, own_frames_norm, whole_frames
from salsa_dist.speech_llms.window import audio_of, longest

# Cohere's feature extractor cuts longer clips in parts; the others take more.
_WINDOW_S = 30.0
# Samples of a frame of MoonshineStreaming, and of the silence behind a clip: its two convolutions halve
# the frames and see four behind the last.
_FRAME, _BEHIND = 80, 2_000


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
        config = checkpoint.config
        if options.prompt is not None:
            raise UserError("base.prompt: this base takes no instruction: remove it")
        self.kind: str = config.model_type
        self.processor = checkpoint.processor
        self.tokenizer = checkpoint.processor.tokenizer
        self.window_s = longest(_WINDOW_S, options.window_s)
        self.start: int = config.decoder_start_token_id
        self.eos: int = config.eos_token_id
        self.pad: int = self.eos if config.pad_token_id is None else config.pad_token_id
        self.max_tokens: int = getattr(config, "decoder_config", config).max_position_embeddings
        self.language_as = options.language_as
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
            own_frames_norm(model.get_encoder())
        elif self.kind == "moonshine_streaming":
            keep_what_is_read(model.get_decoder())

    def announced(self, language: str) -> str:
        """The language that the prompt names."""
        asked = self.language_as.get(language)
        if asked is not None and asked not in self._prompts:
            raise UserError(
                f"base.language_as: this base knows no language {asked!r}; known are "
                + ", ".join(self.languages)
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
        audio = audio_of(clip, self.window_s)
        own = len(audio)
        if self.kind == "moonshine":
            audio, own = whole_frames(audio)
        elif self.kind == "moonshine_streaming":
            own += -own % _FRAME
            audio = np.pad(audio, (0, own + _BEHIND - len(audio)))
        made = self.processor.feature_extractor(
            [audio], sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        )
        features = {k: t for k, t in made.items() if isinstance(t, Tensor)}
        if self.kind.startswith("moonshine"):
            features["attention_mask"] = (torch.arange(len(audio)) < own).long()[None]
        return Processed(features, 0)
