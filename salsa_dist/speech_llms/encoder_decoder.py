"""Shared by families of an encoder and a decoder with cross-attention: batches and transcripts.

    decoder input   prompt …  текст …
    label                     текст …   end of text

A prompt may be the start token alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import decode_greedily
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, SharedAudio, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, Family, FamilyOptions


class EncoderDecoder(Family):
    """Batches and transcripts of this kind; the rest says what differs.

    Attributes:
        tokenizer: of the checkpoint.
        start: the token that a decoder input begins with.
        eos: the token that ends a transcript.
        pad: what stands behind a shorter one.
        max_tokens: longest decoder input.
        language_as: as in `FamilyOptions`.
    """

    pad: int
    max_tokens: int

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        self.tokenizer = checkpoint.processor.tokenizer
        self.start: int = checkpoint.config.decoder_start_token_id
        self.eos: int = checkpoint.config.eos_token_id
        self.language_as = options.language_as

    @abstractmethod
    def prompt(self, language: str) -> list[int]:
        """Token ids up to where the transcript starts."""

    @abstractmethod
    def audio(self, clips: Sequence[Clip], kept: bool = False) -> dict[str, Tensor]:
        """The model's audio arguments, a row per clip; `kept` as in `Family.shared_batch`."""

    def apart(self, language: str) -> int:
        """How long its prompt is: transformers decodes prompts of one length at a time."""
        return len(self.prompt(language))

    def text_ids(self, clip: Clip) -> list[int]:
        """The transcript's token ids with the end-of-text; empty where it is not known."""
        text = clip.text.strip()
        return self.spelled(clip, text) if text else self.nothing_said(clip)

    def nothing_said(self, clip: Clip) -> list[int]:
        """The labels of a clip with an empty text: the end-of-text alone where nobody speaks."""
        return [] if clip.speech else [self.eos]

    def training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        """Audio, prompt and transcript of `clips`; a clip without text has no labels."""
        return self._batch(clips, self.audio(clips))

    def shared_batch(
        self, clips: Sequence[Clip], distinct: Sequence[Clip], kept: bool = False
    ) -> AdapterBatch:
        """The same, encoding only `distinct`, which has each key of `clips` once."""
        keys = tuple(clip.key for clip in distinct)
        one = torch.ones(len(distinct), dtype=torch.long)
        clip_of = torch.tensor([keys.index(clip.key) for clip in clips])
        shared = SharedAudio(keys, self.audio(distinct, kept), one, one, clip_of)
        return replace(self._batch(clips, {}), shared=shared)

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        """Audio and prompts of `clips`, whose languages have prompts of one length."""
        prompts = torch.tensor([self.prompt(clip.language) for clip in clips])
        return PromptBatch.of(clips, {**self.audio(clips), "decoder_input_ids": prompts})

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        """Transcribe a batch greedily; no row is dropped."""
        batch = batch.on(model)
        prompt = batch.inputs["decoder_input_ids"].shape[1]
        ids = decode_greedily(
            model,
            {**batch.inputs, **batch.options},
            max_new_tokens=min(max_new_tokens, self.max_tokens - prompt),
            synced=synced,
            stop=self.eos,
            pad=self.pad,
        )
        # The prompt may hold the token that ends a text.
        return [Transcript(self.transcript(row), self.eos in row) for row in ids[:, prompt:].tolist()]

    @cached_property
    def _control(self) -> set[int]:
        return {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}

    def spelled(self, clip: Clip, text: str) -> list[int]:
        """Token ids of `text`, of `clip`, with the end-of-text."""
        own: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        if not self._control.isdisjoint(own):
            raise UserError(
                f"clip {clip.key}: its transcript {text.strip()[:40]!r} holds a control token of this "
                "base: remove it from the shards"
            )
        return [*own, self.eos]

    def _batch(self, clips: Sequence[Clip], audio: dict[str, Tensor]) -> AdapterBatch:
        sequences, labels = [], []
        for clip in clips:
            prompt = self.prompt(clip.language)
            text = self.text_ids(clip)
            sequences.append(prompt + text[:-1])
            labels.append(text)
        longest = max(map(len, sequences))
        if longest > self.max_tokens:
            worst = max(clips, key=lambda c: len(c.text))
            raise UserError(
                f"clip {worst.key}: prompt and transcript take {longest} tokens, the base has "
                f"{self.max_tokens}"
            )
        ids = torch.full((len(clips), longest), self.eos)
        positions = torch.zeros(len(clips), longest, dtype=torch.bool)
        for i, (sequence, label) in enumerate(zip(sequences, labels, strict=True)):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            positions[i, len(sequence) - len(label) : len(sequence)] = bool(label)
        return AdapterBatch.of(clips, {**audio, "decoder_input_ids": ids}, positions, labels)

    def transcript(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
