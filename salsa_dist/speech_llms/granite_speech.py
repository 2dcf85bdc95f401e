"""Granite-Speech: a conformer with BatchNorm, a Q-Former that makes 3 tokens of 15 frames, and Granite.

    user       <|audio|>… can you transcribe the speech into a written format?
    assistant  lekker slapen <|end_of_text|>

Element of an encoder layer's output: one clip.

The conformer has no mask: what is padded behind a clip changes the clip's own frames. So every clip is
padded to the window, whatever it is packed with; the prompt has placeholders for the clip's own length.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.speech_llms.built_in_lora import BESIDE
from salsa_dist.speech_llms.chat import ChatFamily
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, processed_by

# As the model cards ask: ibm-granite/granite-speech-3.3-2b and -8b on the Hugging Face hub. Plus, which
# can also write speakers and times, is asked for the text alone.
_REQUEST = "can you transcribe the speech into a written format?"
_SYSTEM = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
# The encoder takes any length. This is a guard on cost, and what most corpora are cut to.
_WINDOW_S = 30.0


class GraniteSpeech(ChatFamily):
    """The request names no language. The cards' system turn, with its fixed date, is given only to
    checkpoints whose chat template would write today's date instead: prompts must not change overnight.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("granite_speech", "granite_speech_plus")
    LORA: ClassVar[str | None] = BESIDE

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.processor = checkpoint.processor
        window_s = _WINDOW_S if options.window_s is None else options.window_s
        end = checkpoint.processor.tokenizer.eos_token
        super().__init__(checkpoint, options, window_s, self.processor.audio_token, end)
        self.padded_to_s = window_s

    def prompt_text(self, language: str) -> str:
        return self._chat(language, None)

    def full_text(self, language: str, transcript: str) -> str:
        return self._chat(language, transcript)

    def process(self, audio: NDArray[np.float32]) -> Processed:
        window = np.zeros(round(self.window_s * SAMPLE_RATE), np.float32)
        return processed_by(self.processor, audio, window)

    def _chat(self, language: str, answer: str | None) -> str:
        request = self.instruction(language, _REQUEST, _REQUEST)
        turns = [{"role": "user", "content": self.audio_token + request}]
        template: Any = self.processor.chat_template or self.tokenizer.chat_template
        if "strftime" in str(template):
            turns.insert(0, {"role": "system", "content": _SYSTEM})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=answer is None
        )
        return str(text)
