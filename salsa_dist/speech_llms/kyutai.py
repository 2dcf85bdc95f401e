"""Kyutai STT: Mimi's codes of 24 kHz audio beside each text token, and a decoder; a token per 80 ms.

    audio   <bos> a0  a1  a2  a3  a4  a5 …      a sum of embeddings: one of the text, 32 of the audio
    text    <bos> P   P   W   ▁no ch  P  …
    label   P     P   W   ▁no ch  P   P  …      the text `audio_delay_seconds` behind the audio

The layout is that of kyutai-labs/moshi-finetune, `finetune/data/interleaver.py`: 12.5 frames per second,
padding 3, mark 0 before a word, pieces from the frame of its start, padding and marks at weight 0.5
(`text_padding_weight`). Ours: what finds no frame is written later (its `keep_and_shift`), and the
frames before the delay are labelled as padding, which a transcription starts with.

Steered in the LLM alone: codes are discrete, no gradient passes them. Mimi runs without gradients inside
the decoder's forward pass, on the whole clip, and so does `generate`. A clip, its silence and its
delay fit the decoder's context (`sliding_window`): transformers has no sliding mask in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from salsa_dist.data.audio import resample
from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import decode_greedily
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import ClipByClip, Processed, side_by_side
from salsa_dist.speech_llms.window import audio_of, longest
from salsa_dist.speech_llms.word_frames import FRAMES_PER_S, WordFrames

_MARK = 0  # `end_of_text_padding_id` of kyutai-labs/moshi, moshi/models/lm.py
_PADDING_WEIGHT = 0.5


class Kyutai(ClipByClip):
    """It reads no prompt: a language is not announced."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("kyutai_speech_to_text",)
    RESAMPLES: bool = True
    LEARNS_WORD_TIMES: bool = True

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
        self.words = WordFrames(config.pad_token_id, _MARK, self._pieces)

    def fit(self, model: Any) -> None:
        """Have the decoder read audio beside its text, in place."""
        model.model.register_forward_pre_hook(AudioBeside(model), with_kwargs=True)
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

    def batch_of(
        self, clips: Sequence[Clip], processed: Sequence[Processed], audio: dict[str, Tensor]
    ) -> AdapterBatch:
        longest_clip = max(h.tokens for h in processed)
        ids = torch.full((len(clips), longest_clip), self.words.padding)
        positions = torch.zeros(len(clips), longest_clip, dtype=torch.bool)
        labels: list[list[int]] = []
        for i, (clip, made) in enumerate(zip(clips, processed, strict=True)):
            first = self.prompt(clip.language)
            known = bool(clip.text.strip()) or not clip.speech
            written = self.words.of(clip, made.tokens, self._first) if known else []
            labels.append(written)
            read = [*first, *written[:-1]]
            ids[i, : len(read)] = torch.tensor(read)
            positions[i, : len(written)] = True
        weights = [w for own in labels for w in self.words.weights(own, _PADDING_WEIGHT)]
        batch = AdapterBatch.of(clips, {"input_ids": ids, **audio}, positions, labels)
        return replace(batch, label_weights=torch.tensor(weights))

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
        frames = batch.options["frames"]
        audio = batch.inputs["audio"]
        reading = AudioBeside(model, audio)
        hook = model.model.register_forward_pre_hook(reading, with_kwargs=True, prepend=True)
        try:
            ids = decode_greedily(
                model,
                {
                    "input_ids": torch.full((len(audio), 1), self.bos, device=audio.device),
                    **{k: v for k, v in batch.options.items() if k != "frames"},
                },
                max_new_tokens=max(frames),
                synced=synced,
                stop=None,
                pad=self.words.padding,
                # The model's own encodes audio between passes, which ranks that share weights can't.
                loop=partial(GenerationMixin.generate, model),
            )
        finally:
            hook.remove()
        found = [self.words.text(r[:n]) for r, n in zip(ids[:, 1:].tolist(), frames, strict=True)]
        return [
            Transcript(self.transcript(own[:max_new_tokens]), len(own) <= max_new_tokens)
            for own in found
        ]

    def transcript(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(self.words.text(ids), skip_special_tokens=True)).strip()

    def _pieces(self, word: str) -> list[int]:
        return list(self.tokenizer(word, add_special_tokens=False).input_ids)

    def _first(self, start: float, end: float) -> float:
        return start + self.later_s


class AudioBeside:
    """A hook on the decoder: Mimi's codes of a frame beside the text of the frame before.

    Args:
        model: the base.
        audio: (batch, 1, samples), the bits of fp32, of a batch that is being transcribed; None: it comes
            with each pass.
    """

    def __init__(self, model: Any, audio: Tensor | None = None) -> None:
        self._model = model
        self._audio = audio
        self._codes: Tensor | None = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        audio = kwargs.pop("audio", self._audio)
        if audio is None:
            return args, kwargs  # codes are given beside the text
        if self._audio is None or self._codes is None:
            self._codes = self._encoded(audio)
        codes = self._codes
        ids: Tensor = kwargs["input_ids"]
        positions = kwargs.get("position_ids")
        at = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions[0]
        # A rank that waits for others goes on past its audio.
        beside = codes[:, (at - 1).clamp(0, codes.shape[1] - 1)]
        beside = beside.masked_fill((at == 0)[:, None], self._model.config.audio_bos_token_id)
        return args, {**kwargs, "input_ids": torch.cat([ids[..., None], beside], 2)}

    @torch.no_grad()
    def _encoded(self, audio: Tensor) -> Tensor:
        """(batch, frames, codebooks)"""
        codec = self._model.codec_model
        wave = audio.view(torch.float32).to(next(codec.parameters()).dtype)
        return codec.encode(wave).audio_codes.transpose(1, 2)
