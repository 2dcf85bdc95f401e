"""Qwen3-Omni's thinker: an encoder over one-second chunks, packed, and a Qwen of many experts.

    <|im_start|>user <|audio_start|><|audio_pad|>…<|audio_end|>Transcribe the Greek audio …<|im_end|>
    <|im_start|>assistant καλημέρα <|im_end|>

Element of an encoder layer's output: one packed token, 13 a second. All clips' tokens lie in one row,
(tokens, hidden) without a batch dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed
from salsa_dist.speech_llms.qwen2_5_omni import Qwen25Omni

# As the authors evaluate it: QwenLM/Qwen3-Omni, README.md, Setting for Evaluation.
_CHINESE = "请将这段中文语音转换为纯文本。"
_REQUEST = "Transcribe the {language} audio into text."
_NAMELESS = "Transcribe the audio into text."


class Qwen3Omni(Qwen25Omni):
    """The prompt has no system turn; languages are named as in Qwen2.5-Omni."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    MODEL_CLASS: ClassVar[str | None] = "Qwen3OmniMoeThinkerForConditionalGeneration"
    AUDIO_TOKEN: ClassVar[str] = "<|audio_pad|>"

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        super().__init__(checkpoint, options)
        self.chunk: int = 2 * checkpoint.config.audio_config.n_window

    def prompt_text(self, language: str) -> str:
        own = _CHINESE if self.announced(language) == "zh" else _REQUEST
        request = self.instruction(language, own, _NAMELESS)
        return (
            f"<|im_start|>user\n<|audio_start|>{self.audio_token}<|audio_end|>{request}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def process(self, audio: NDArray[np.float32]) -> Processed:
        # The encoder pads each chunk to the longest of its batch, which its convolutions notice: with a
        # whole chunk, one second, of every clip that is the same in any batch.
        shortest = self.chunk * self.features.hop_length
        processed = super().process(np.pad(audio, (0, max(0, shortest - len(audio)))))
        frames = processed.features["input_features"].shape[-1]
        whole, rest = divmod(frames, self.chunk)
        tokens = whole * _tokens(self.chunk) + _tokens(rest)
        return replace(processed, tokens=tokens, elements=tokens)


def _tokens(frames: int) -> int:
    """What three convolutions of stride 2 make of a chunk."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames
