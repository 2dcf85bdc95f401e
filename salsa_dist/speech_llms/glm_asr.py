"""GLM-ASR: an encoder of Whisper's kind over 30 s windows, a projector of 4 positions each, and Llama.

    <|user|> <|begin_of_audio|><|pad|>…<|end_of_audio|>
    <|user|> Please transcribe this audio into text <|assistant|> καλημέρα <|user|>

    clip of 70 s   |--- 30 s ---|--- 30 s ---|10 s 00000000|   3 rows of the encoder's batch

Element of an encoder layer's output: one window. A clip has as many as it takes.

The encoder has no mask: what is padded behind a clip changes the clip's own frames. So every window is
padded to its full length, whatever it is packed with, which is also what the authors do; the prompt has
placeholders for the clip's own length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.speech_llms.chat import AUDIO, ChatFamily, as_text
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, processed_by
from salsa_dist.speech_llms.window import longest


class GlmAsr(ChatFamily):
    """The prompt is `apply_transcription_request` of transformers' processing_glmasr.py. It
    names no language. Up to one window it is the authors' own (zai-org/GLM-ASR, inference.py); of a
    longer clip they put each window between marks of its own, transformers all between one pair.

    The template writes nothing behind an answer. The published weights end one with `<|user|>`, the
    start of the next turn, and not with the tokenizer's end of text: vllm-project/vllm,
    tests/models/fixtures/transformers_audio_expected_results.json, token 59253.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("glmasr",)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.processor = checkpoint.processor
        # What is beyond the last whole window the processor drops, with no more than a warning.
        window_s = self.processor.feature_extractor.chunk_length
        most = self.processor.max_audio_len // window_s * window_s
        super().__init__(
            checkpoint,
            options,
            longest(most, options.window_s),
            self.processor.audio_token,
            "<|user|>",
        )
        self.padded_to_s = float(window_s)

    def prompt_text(self, language: str) -> str:
        own = self.processor.default_transcription_prompt
        instruction = {"type": "text", "text": self.instruction(language, own, own)}
        return as_text(self.processor, [{"role": "user", "content": [AUDIO, instruction]}])

    def process(self, audio: NDArray[np.float32]) -> Processed:
        processed = processed_by(self.processor, audio)
        return replace(processed, elements=len(processed.features["input_features"]))
