"""Kyutai STT: Mimi's codes of 24 kHz audio beside each text token, and a decoder; a token per 80 ms.

    audio   <bos> a0  a1  a2  a3  a4  a5 …      a sum of embeddings: one of the text, 32 of the audio
    text    <bos> P   P   W   ▁no ch  P  …
    label   P     P   W   ▁no ch  P   P  …      the text `audio_delay_seconds` behind the audio

The layout is that of kyutai-labs/moshi-finetune, `finetune/data/interleaver.py`: 12.5 frames per
second, padding 3, mark 0 before a word, pieces from the frame of its start. Silence and delay come on
top (`scripts/stt_from_file_pytorch.py` of kyutai-labs/delayed-streams-modeling). Ours: what finds no
frame is written later (its `keep_and_shift`), and the frames before the delay are labels, padding.

Steered in the LLM alone: codes are discrete, no gradient passes them. A clip, its silence and its delay
fit the decoder's context (`sliding_window`): transformers has no sliding mask in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from salsa_dist.data.audio import resample
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import decode_greedily
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import PromptBatch, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.mimi_codes import AudioBeside
from salsa_dist.speech_llms.processed import Processed, side_by_side
from salsa_dist.speech_llms.window import audio_of, longest
from salsa_dist.speech_llms.word_frames import FRAMES_PER_S, FrameFamily

_MARK = 0  # `end_of_text_padding_id` of kyutai-labs/moshi, moshi/models/lm.py


class Kyutai(FrameFamily):
    """It reads no prompt: a language is not announced."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("kyutai_speech_to_text",)
    RESAMPLES: bool = True

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        for key, value in (("prompt", options.prompt), ("language_as", options.language_as)):
            if value:
                raise UserError(f"base.{key}: Kyutai STT reads no prompt: remove it")
        config = checkpoint.config
        self.tokenizer = checkpoint.processor.tokenizer
        self.features = checkpoint.processor.feature_extractor
        self.bos: int = config.bos_token_id
        self.frame_size: int = config.frame_size
        silence_s = self.features.audio_silence_prefix_seconds
        self.later_s: float = silence_s + self.features.audio_delay_seconds
        # The processor puts a second more behind the delay.
        self.window_s = longest(
            config.sliding_window / FRAMES_PER_S - self.later_s - 1.0, options.window_s
        )
        self.languages = languages.named()
        self.padding, self.mark = config.pad_token_id, _MARK

    def fit(self, model: Any) -> None:
        """Have the decoder read audio beside its text, in place."""
        AudioBeside(model).attached()
        # Else transformers looks for audio before the first pass, to encode all of it.
        model.generation_config.audio_window_size = 1

    def prompt(self, language: str) -> list[int]:
        languages.parts(language)  # refuses what is none
        return [self.bos]

    def process_clip(self, clip: Clip) -> Processed:
        """The audio's bits, which no precision of a base may change, and the number of frames."""
        rate = self.features.sampling_rate
        audio = resample(audio_of(clip, self.window_s), SAMPLE_RATE, rate)
        made: Tensor = self.features(audio, sampling_rate=rate, return_tensors="pt")["input_values"]
        return Processed({"audio": made.view(torch.int32)}, made.shape[-1] // self.frame_size)

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        processed = [self.process_clip(clip) for clip in clips]
        frames = {"frames": [h.tokens for h in processed]}
        return PromptBatch.of(clips, side_by_side(processed), frames)

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        # No text token ends a transcript: it is as long as the audio.
        from transformers import GenerationMixin

        batch = batch.on(model)
        frames, options = self.without_frames(batch)
        audio = batch.inputs["audio"]
        bos = torch.full((len(audio), 1), self.bos, device=audio.device)
        with AudioBeside(model, audio).attached():
            ids = decode_greedily(
                model,
                {"input_ids": bos, **options},
                max_new_tokens=max(frames),
                synced=synced,
                stop=None,
                pad=self.padding,
                loop=partial(GenerationMixin.generate, model),  # see mimi_codes.py
            )
        return self.transcripts(ids[:, 1:].tolist(), frames, max_new_tokens)

    def pieces(self, word: str) -> list[int]:
        return list(self.tokenizer(word, add_special_tokens=False).input_ids)

    def first_frame(self, start: float, end: float) -> int:
        return int((start + self.later_s) * FRAMES_PER_S)
