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
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import generating_quietly
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, SharedAudio, Transcript
from salsa_dist.speech_llms.chat import Processed, side_by_side
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.encoder_decoder import EncoderDecoder
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions, auto_processor
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
    MODEL_CLASS: ClassVar[str | None] = None
    THINS_PADDING: bool = False
    padded_to_s: float | None = None

    @staticmethod
    def load_processor(name: str, revision: str | None) -> Any:
        return auto_processor(name, revision)

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
        self._prompts: dict[str, list[int]] = {}
        for code in languages.named():
            try:
                self._prompts[code] = self._asked(code)
            except ValueError:
                continue  # as the processor says of a language that the base does not know
        self.languages = sorted(self._prompts)

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

    def apart(self, language: str) -> int:
        return len(self.prompt(language))

    def text_ids(self, clip: Clip) -> list[int]:
        text = clip.text.strip()
        return self.spelled(clip, text) if text else self.nothing_said(clip)

    def training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        return self._batch(clips, side_by_side([self._process(clip) for clip in clips]))

    def shared_batch(
        self, clips: Sequence[Clip], distinct: Sequence[Clip], kept: bool = False
    ) -> AdapterBatch:
        keys = tuple(clip.key for clip in distinct)
        one = torch.ones(len(distinct), dtype=torch.long)
        audio = side_by_side([self._process(clip) for clip in distinct])
        clip_of = torch.tensor([keys.index(clip.key) for clip in clips])
        return replace(self._batch(clips, {}), shared=SharedAudio(keys, audio, one, one, clip_of))

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        """Audio and prompts of `clips`, whose languages have prompts of one length."""
        rows = torch.tensor([clip.row for clip in clips])
        prompts = torch.tensor([self.prompt(clip.language) for clip in clips])
        audio = side_by_side([self._process(clip) for clip in clips])
        return PromptBatch(
            inputs={**audio, "decoder_input_ids": prompts},
            options={},
            rows={"encoder": rows, "llm": rows},
        )

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        weight = next(model.parameters())
        batch = batch.to(weight.device, weight.dtype)
        prompt = batch.inputs["decoder_input_ids"].shape[1]
        with generating_quietly():
            ids: Tensor = model.generate(
                **batch.inputs,
                **batch.options,
                do_sample=False,
                num_beams=1,
                max_new_tokens=min(max_new_tokens, self.max_tokens - prompt),
                eos_token_id=self.eos,
                pad_token_id=self.pad,
                synced_gpus=synced,
            )
        # The prompt may hold the token that ends a text.
        return [Transcript(self.transcript(row), self.eos in row) for row in ids[:, prompt:].tolist()]

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
