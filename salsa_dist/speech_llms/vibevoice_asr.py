"""VibeVoice-ASR: two convolutional encoders of 24 kHz audio with a token every 133 ms, and Qwen.

    user       <|object_ref_start|><|box_start|>…<|object_ref_end|> This is a 1.13 seconds audio, …
    assistant  [{"Start":0,"End":1.13,"Speaker":0,"Content":"лека нощ"}]

Steered in the LLM alone: transformers runs the encoders without gradients. The noise that it adds to
what one of them puts out would change a clip at each pass: it is left out.

A transcript stands in the JSON that the base writes, as one segment of the clip's length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.audio import resample
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.speech_llms.chat import AUDIO, ChatFamily, as_text
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, processed_by
from salsa_dist.speech_llms.window import longest

_ANSWERS = "<|im_start|>assistant\n"


class VibeVoiceAsr(ChatFamily):
    """The request is in the chat template, and names no language. `prompt` is given to it as context,
    which it has a place for."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("vibevoice_asr",)
    RESAMPLES: bool = True

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.processor = checkpoint.processor
        # What the encoders take at once, a minute. Ranks that share weights must take as many passes.
        own_s = checkpoint.config.acoustic_tokenizer_chunk_size / self._rate
        window_s = longest(own_s, options.window_s)
        end = self.processor.tokenizer.eos_token
        super().__init__(checkpoint, options, window_s, self.processor.audio_token, end)

    def fit(self, model: Any) -> None:
        """Leave out the noise, in place."""
        model.config.acoustic_tokenizer_encoder_config.vae_std = 0.0

    def prompt_text(self, language: str) -> str:
        context = self.instruction(language, "", "")
        told = [{"type": "text", "text": context}] if context else []
        return as_text(self.processor, [{"role": "user", "content": [AUDIO, *told]}])

    def full_text(self, language: str, transcript: str) -> str:
        return f"{self.prompt_text(language)}{_ANSWERS}{transcript}<|im_end|>\n{self.end}"

    def prompt_of(self, clip: Clip, processed: Processed) -> list[int]:
        text = self.prompt_text(clip.language)
        text = text.replace(self.processor.audio_duration_token, f"{processed.seconds:.2f}")
        text = text.replace(self.audio_token, self.audio_token * processed.tokens, 1)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def answer_ids(self, clip: Clip) -> list[int]:
        text = clip.text.strip()
        content = json.dumps(text, ensure_ascii=False)
        segment = f'[{{"Start":0,"End":{clip.seconds:.2f},"Speaker":0,"Content":{content}}}]'
        return super().answer_ids(replace(clip, text=segment if text else ""))

    def transcript(self, ids: Sequence[int]) -> str:
        written = super().transcript(ids).removeprefix(_ANSWERS.partition(">")[2].strip()).strip()
        try:
            return " ".join(segment["Content"] for segment in json.loads(written)).strip()
        except (ValueError, TypeError, KeyError):
            return written  # cut off, or none of its segments

    def process(self, audio: NDArray[np.float32]) -> Processed:
        made = processed_by(self.processor, resample(audio, SAMPLE_RATE, self._rate), rate=self._rate)
        return replace(made, seconds=len(audio) / SAMPLE_RATE)

    @property
    def _rate(self) -> int:
        return int(self.processor.feature_extractor.sampling_rate)
