"""Qwen2.5-Omni's thinker: an encoder over two-second chunks, packed, and Qwen; no talker, no vision.

    <|im_start|>system You are a speech recognition model.<|im_end|>
    <|im_start|>user <|audio_bos|><|AUDIO|>…<|audio_eos|>Transcribe the Greek audio …<|im_end|>
    <|im_start|>assistant καλημέρα <|im_end|>

Element of an encoder layer's output: one packed position. All clips' positions lie in one row,
(positions, hidden) without a batch dimension: every two frames of a clip are one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.speech_llms.chat import ChatFamily
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions, parts_of_processor
from salsa_dist.speech_llms.processed import Processed
from salsa_dist.speech_llms.window import longest

# As the authors ask for transcripts: QwenLM/Qwen2.5-Omni,
# cookbooks/universal_audio_understanding.ipynb.
_SYSTEM = "You are a speech recognition model."
_REQUEST = "Transcribe the {language} audio into text without any punctuation marks."
_NAMELESS = "Transcribe the audio into text without any punctuation marks."


class Qwen25Omni(ChatFamily):
    """A language is named in English, mixed speech by all its parts; one without a known name is left
    out of the request."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    MODEL_CLASS: ClassVar[str | None] = "Qwen2_5OmniThinkerForConditionalGeneration"
    AUDIO_TOKEN: ClassVar[str] = "<|AUDIO|>"

    load_processor = staticmethod(parts_of_processor)  # its whole wants torchvision

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.features = checkpoint.processor.feature_extractor
        window_s = longest(self.features.n_samples / SAMPLE_RATE, options.window_s)
        super().__init__(checkpoint, options, window_s, self.AUDIO_TOKEN, "<|im_end|>")

    def prompt_text(self, language: str) -> str:
        request = self.instruction(language, _REQUEST, _NAMELESS)
        # Written out as its chat template renders it, which lives in the processor.
        return (
            f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n"
            f"<|im_start|>user\n<|audio_bos|>{self.audio_token}<|audio_eos|>{request}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def process(self, audio: NDArray[np.float32]) -> Processed:
        # Its processor pads every clip to 300 s and drops all but its own frames. One second of silence
        # gives the same frames: those at the end see only 25 ms behind them.
        made = self.features(
            audio,
            sampling_rate=SAMPLE_RATE,
            padding="max_length",
            max_length=len(audio) + SAMPLE_RATE - len(audio) % self.features.hop_length,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        frames = int(made["attention_mask"].sum())
        features = {
            "input_features": made["input_features"][..., :frames],
            "feature_attention_mask": made["attention_mask"][..., :frames],
        }
        positions = (frames + 1) // 2
        return Processed(features, tokens=positions // 2, elements=positions)
