"""Qwen3-ASR: a convolutional encoder over one-second chunks, packed, a projector, and Qwen3.

    <|im_start|>user <|audio_pad|>…<|im_end|>
    <|im_start|>assistant language Greek<asr_text> καλημέρα <|im_end|>

Element of an encoder layer's output: one packed token. All clips' tokens lie in one row,
(tokens, hidden) without a batch dimension, as many a clip as it has placeholders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.chat import AUDIO, ChatFamily, as_text
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, processed_by
from salsa_dist.speech_llms.window import longest

# The longest audio that the authors' own package gives the model at once: QwenLM/Qwen3-ASR,
# qwen_asr/inference/utils.py.
_LONGEST_S = 1200.0


class Qwen3ASR(ChatFamily):
    """The prompt ends in `language NAME<asr_text>`, as the authors force a language, so that only the
    transcript follows. Mixed speech gets the name of its first known part. A language without a name
    there gets `language None`, their form for fine-tuning without language information
    (QwenLM/Qwen3-ASR, finetuning/README.md). An instruction of the user's goes where the authors put
    context: into the system turn.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen3_asr",)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        from salsa_dist.libraries.transformers import qwen3_asr_languages

        self.processor = checkpoint.processor
        window_s = longest(_LONGEST_S, options.window_s)
        super().__init__(checkpoint, options, window_s, self.processor.audio_token, "<|im_end|>")
        self.names = qwen3_asr_languages()
        self.languages = sorted(self.names)

    def prompt_text(self, language: str) -> str:
        code = languages.first_known(self.announced(language), self.names)
        context = self.options.prompt
        messages: list[dict[str, Any]] = [{"role": "user", "content": [AUDIO]}]
        if context is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": context}]})
        # Chosen here and not by `apply_transcription_request`, which refuses what it has no name for.
        name = self.names[code] if code else None
        return f"{as_text(self.processor, messages)}language {name}<asr_text>"

    def process(self, audio: NDArray[np.float32]) -> Processed:
        processed = processed_by(self.processor, audio)
        return replace(processed, elements=processed.tokens)
