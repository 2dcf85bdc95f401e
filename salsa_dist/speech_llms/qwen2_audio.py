"""Qwen2-Audio: Whisper's encoder over a fixed window, a linear projector, and Qwen.

    base       <|audio_bos|><|AUDIO|>…<|audio_eos|>Detect the language and recognize the speech: <|bg|>
    Instruct   the same request as a turn of the user's

Element of an encoder layer's output: one clip.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import PromptBatch
from salsa_dist.speech_llms.chat import ChatFamily
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import side_by_side
from salsa_dist.speech_llms.window import audio_of, fixed, shorten

# As the authors evaluate ASR: QwenLM/Qwen2-Audio, eval_audio/evaluate_asr.py and EVALUATION.md.
_REQUEST = "Detect the language and recognize the speech: <|{code}|>"


class Qwen2Audio(ChatFamily):
    """The pretrained base reads the bare request, the Instruct one a chat turn; which of them a
    checkpoint is, its generation config says: only the latter stops at the end of a turn.

    A language is named by its code, mixed speech by its first part; any code will do.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen2_audio",)

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.processor = copy.copy(checkpoint.processor)
        # The encoder's pooling halves the positions, which halve the frames.
        self.processor.feature_extractor, self.positions = fixed(
            checkpoint.processor.feature_extractor,
            checkpoint.config.audio_config.max_source_positions,
            options.window_s,
            step=4,
        )
        window_s = self.processor.feature_extractor.n_samples / SAMPLE_RATE
        super().__init__(checkpoint, options, window_s, self.processor.audio_token, "<|im_end|>")
        self.padded_to_s = window_s
        stop = checkpoint.generation.eos_token_id
        self.chats = self.end_id in (stop if isinstance(stop, list) else [stop])
        if not self.chats:
            self.end = "<|endoftext|>"
            self.end_id = self.tokenizer.convert_tokens_to_ids(self.end)
            self.stop = sorted({self.end_id, *([stop] if isinstance(stop, int) else stop or [])})

    def fit(self, model: Any) -> None:
        shorten(model.model.audio_tower, self.positions)

    def request(self, language: str) -> str:
        code = languages.parts(self.announced(language))[0]
        own = _REQUEST.replace("{code}", code)
        return self.instruction(language, own, own)

    def prompt_text(self, language: str) -> str:
        if self.chats:
            return self._turns(language, [None])
        p = self.processor
        return f"{p.audio_bos_token}{p.audio_token}{p.audio_eos_token}{self.request(language)}"

    def full_text(self, language: str, transcript: str) -> str:
        if self.chats:
            return self._turns(language, [transcript])
        return super().full_text(language, transcript)

    def in_context_batch(self, clip: Clip, examples: Sequence[Clip]) -> PromptBatch:
        """`clip` behind solved examples: turns of a chat, or requests with their answers in a row."""
        clips = [*examples, clip]
        answers = [example.text.strip() for example in examples]
        if self.chats:
            text = self._turns(clip.language, [*answers, None])
        else:
            bare = self.prompt_text(clip.language)
            text = "".join(f"{bare}{answer}{self.end}" for answer in answers) + bare
        processed = [self.process(audio_of(c, self.window_s)) for c in clips]
        between = text.split(self.audio_token)
        if len(between) != len(clips) + 1:
            raise UserError(f"clip {clip.key}: an example's transcript holds {self.audio_token}")
        audio = [self.audio_token * one.tokens for one in processed]
        text = between[0] + "".join(a + b for a, b in zip(audio, between[1:], strict=True))
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **side_by_side(processed)}
        return PromptBatch.of([clip], inputs, encoder_rows=torch.full((len(clips),), clip.row))

    def in_context_room(self, max_new_tokens: int) -> float:
        """Tokens left for examples' texts: the LLM reads far more than a window's speech comes to."""
        return math.inf

    def _turns(self, language: str, answers: Sequence[str | None]) -> str:
        """A chat with a request for each answer; the last may be open."""
        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": self.request(language)}]
        turns: list[dict[str, Any]] = []
        for answer in answers:
            turns.append({"role": "user", "content": content})
            if answer is not None:
                turns.append({"role": "assistant", "content": answer})
        text = self.processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=answers[-1] is None
        )
        return str(text)
