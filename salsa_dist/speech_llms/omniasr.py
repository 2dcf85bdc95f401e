"""OmniASR-LLM: the encoder of OmniASR-CTC, and Llama.

    <extra_id_1>…<extra_id_0><|lang:bul_cyrl|><s>лека нощ</s>

Element of an encoder layer's output: one clip.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.chat import AUDIO, ChatFamily, as_text
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.window import longest

# The limit of the authors' own inference: facebookresearch/omnilingual-asr, MAX_ALLOWED_AUDIO_SEC.
_WINDOW_S = 40.0


class OmniAsr(ChatFamily):
    """A language is named by a token of its own, one of some 1,600, as `bg` or with its script as
    `bul_Cyrl`; mixed speech by its first part that has one. Any other gets the authors' token for
    whatever language is spoken."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("omniasr",)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        if options.prompt is not None:
            raise UserError("base.prompt: OmniASR takes no instruction: remove it")
        self.processor = checkpoint.processor
        window_s = longest(_WINDOW_S, options.window_s)
        end = self.processor.tokenizer.eos_token
        super().__init__(checkpoint, options, window_s, self.processor.audio_token, end)

    def prompt_text(self, language: str) -> str:
        announced = self.announced(language)
        for code in (announced.replace("-", "_"), *languages.parts(announced)):
            with suppress(ValueError):  # as the processor says of a language that has no token
                return self._asked([{"type": "language", "language": code}])
        return self._asked([])

    def rest_ids(self, language: str, transcript: str) -> list[int]:
        # Read behind the prompt: by itself a text would begin with a token for a space.
        full, prompt = (
            self.tokenizer(text, add_special_tokens=False).input_ids
            for text in (self.full_text(language, transcript), self.prompt_text(language))
        )
        return list(full[len(prompt) :])

    def _asked(self, told: list[dict[str, Any]]) -> str:
        return as_text(self.processor, [{"role": "user", "content": [AUDIO, *told]}])
