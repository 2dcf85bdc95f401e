"""Any base with a chat prompt, by what its own processor does: no file of its own is needed.

    processor.apply_chat_template   the prompt, and what ends an answer
    processor(text, audio)          features, and how many placeholders stand for the audio
    the encoder's layers            what an element of their output is: a clip, its windows, its tokens

A clip whose features grow with it is processed beside a silent one of the window's length, so that what
it is packed with changes nothing; encoders that pack their clips keep them apart already.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.libraries.transformers import language_names
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.chat import AUDIO, ChatFamily, as_text
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import Processed, processed_by
from salsa_dist.speech_llms.window import longest
from salsa_dist.steering.sites import find_layers

# Ours, where the processor brings no request of its authors' for transcripts.
_REQUEST = "Transcribe the {language} speech into text."
_NAMELESS = "Transcribe the speech into text."
# What a processor may drop beyond, unless it names another limit.
_WINDOW_S = 30.0
_ANSWER = "answer"


class AnyChat(ChatFamily):
    """The request is the processor's own (`default_transcription_prompt`) where it has one, and is put
    before or behind the audio as `apply_transcription_request` does; else it names the language."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.processor = checkpoint.processor
        window_s = float(getattr(self.processor.feature_extractor, "chunk_length", _WINDOW_S))
        most = getattr(self.processor, "max_audio_len", None) or window_s
        super().__init__(
            checkpoint,
            options,
            longest(most // window_s * window_s, options.window_s),
            self.processor.audio_token,
            self.processor.tokenizer.eos_token,
        )
        # A request that is all in its template, which takes the language as a part of the message.
        self.named = language_names(self.processor)
        self._take_end()
        shapes = [
            {k: t.shape for k, t in self._processed(np.zeros(n, np.float32)).features.items()}
            for n in (SAMPLE_RATE // 10, SAMPLE_RATE)
        ]
        self.pads_itself = shapes[0] == shapes[1]
        self.packed = False
        # A processor pads to one or several windows of its own, and where it pads nothing, we do.
        self.padded_to_s = window_s if self.pads_itself else self.window_s

    def fit(self, model: Any) -> None:
        """Learn what an element of an encoder layer's output is; the model is not changed."""
        for layer in find_layers(model).get("encoder", [])[:1]:
            self.packed = "cu_seqlens" in inspect.signature(type(layer).forward).parameters
            if self.packed:
                self.padded_to_s = None

    def prompt_text(self, language: str) -> str:
        return as_text(self.processor, self._turns(language))

    def full_text(self, language: str, transcript: str) -> str:
        turns = [*self._turns(language), _turn("assistant", [{"type": "text", "text": transcript}])]
        text: str = self.processor.apply_chat_template([turns], tokenize=False)[0]
        return text if self.end in text.rpartition(transcript)[2] else text + self.end

    def process(self, audio: NDArray[np.float32]) -> Processed:
        beside = [] if self.pads_itself or self.packed else [self._silence()]
        processed = self._processed(audio, *beside)
        return replace(processed, elements=processed.tokens if self.packed else processed.rows)

    def _processed(self, audio: NDArray[np.float32], *beside: NDArray[np.float32]) -> Processed:
        made = processed_by(self.processor, audio, *beside)
        unused = set(getattr(self.processor, "unused_input_names", ()))
        return replace(made, features={k: v for k, v in made.features.items() if k not in unused})

    def _silence(self) -> NDArray[np.float32]:
        return np.zeros(round(self.window_s * SAMPLE_RATE), np.float32)

    def _turns(self, language: str) -> list[dict[str, Any]]:
        if self.named and self.options.prompt is None:
            code = languages.first_known(self.announced(language), self.named)
            told = [{"type": "language", "language": self.named[code]}] if code else []
            return [_turn("user", [AUDIO, *told])]
        own = getattr(self.processor, "default_transcription_prompt", None)
        text = self.instruction(language, own or _REQUEST, own or _NAMELESS)
        request = {"type": "text", "text": text}
        # AudioFlamingo3 and its kind read the request first.
        return [_turn("user", [request, AUDIO] if own else [AUDIO, request])]

    def _take_end(self) -> None:
        """What the template writes behind an answer, if that is a control token."""
        behind = self.full_text("en", _ANSWER).rpartition(_ANSWER)[2]
        ids = self.tokenizer(behind, add_special_tokens=False).input_ids
        control = [i for i in ids if i in self.tokenizer.all_special_ids]
        if control:
            self.end_id = control[0]
            self.end = self.tokenizer.convert_ids_to_tokens(self.end_id)
            self.stop = sorted({*self.stop, self.end_id})


def _turn(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": content}
