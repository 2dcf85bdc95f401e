"""Shared by families of an encoder and a decoder with cross-attention: training text and transcripts.

    decoder input   prompt …  текст …
    label                     текст …   end of text

A prompt may be the start token alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch


class EncoderDecoder(ABC):
    """What a family of this kind does with text.

    Attributes:
        tokenizer: of the checkpoint.
        eos: the token that ends a transcript.
        max_tokens: longest decoder input.
    """

    tokenizer: Any
    eos: int
    max_tokens: int

    @abstractmethod
    def prompt(self, language: str) -> list[int]:
        """Token ids up to where the transcript starts."""

    @abstractmethod
    def text_ids(self, clip: Clip) -> list[int]:
        """The transcript's token ids with the end-of-text; empty where it is not known."""

    def nothing_said(self, clip: Clip) -> list[int]:
        """The labels of a clip with an empty text: the end-of-text alone where nobody speaks."""
        return [] if clip.speech else [self.eos]

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
        rows = torch.tensor([clip.row for clip in clips])
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
        lengths = torch.tensor([len(label) for label in labels])
        return AdapterBatch(
            keys=[clip.key for clip in clips],
            inputs={**audio, "decoder_input_ids": ids},
            label_positions=positions,
            labels=torch.tensor([i for label in labels for i in label], dtype=torch.long),
            label_rows=rows.repeat_interleave(lengths),
            rows={"encoder": rows, "llm": rows},
        )

    def transcript(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
