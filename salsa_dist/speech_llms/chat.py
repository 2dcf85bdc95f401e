"""Shared by chat families: the LLM gets audio as placeholder tokens inside a prompt.

    prompt    <|user|> <audio> <audio> … transcribe this <|assistant|>
    training  <|user|> <audio> <audio> … transcribe this <|assistant|> лека нощ <|end|>
    label                                                лека нощ      <|end|>

The prompt is the start of the training text, token by token, and carries no labels. Batches are padded
right for training and left for generation. Each clip is tokenized and processed separately and only
then put beside others, so that a clip's tensors do not depend on what it is packed with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import decode_greedily
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows
from salsa_dist.speech_llms.family import Checkpoint, FamilyOptions
from salsa_dist.speech_llms.processed import ClipByClip, Processed, processed_by, side_by_side
from salsa_dist.speech_llms.window import audio_of

_NO_LANGUAGE = "qqq"  # a code that ISO 639 keeps free


class ChatFamily(ClipByClip):
    """Batches and transcripts of a chat family; the rest says what differs.

    Args:
        checkpoint: config, processor and generation config.
        options: what the user changed.
        window_s: longest clip in seconds.
        audio_token: the placeholder, as text.
        end: the token that ends an answer, as text.
    """

    processor: Any

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: FamilyOptions,
        window_s: float,
        audio_token: str,
        end: str,
    ) -> None:
        self.tokenizer = getattr(checkpoint.processor, "tokenizer", checkpoint.processor)
        self.options = options
        self.window_s = window_s
        self.languages = languages.named()
        self.audio_token = audio_token
        config = checkpoint.config
        named = getattr(config, "audio_token_id", None)
        self.audio_id: int = config.audio_config.audio_token_id if named is None else named
        if self.tokenizer.convert_tokens_to_ids(audio_token) != self.audio_id:
            raise UserError(
                f"base {checkpoint.name}: its tokenizer has no audio token {audio_token!r} with id "
                f"{self.audio_id}, which config.json names: take all files from one revision"
            )
        self.end = end
        self.end_id: int = self.tokenizer.convert_tokens_to_ids(end)
        stop = checkpoint.generation.eos_token_id
        stop = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
        self.stop = sorted({self.end_id, *stop})

    @abstractmethod
    def prompt_text(self, language: str) -> str:
        """The prompt with one placeholder, up to where the transcript starts."""

    def process(self, audio: NDArray[np.float32]) -> Processed:
        """Features of (samples,) float32 at 16,000 Hz, as they would be of this clip alone."""
        return processed_by(self.processor, audio)

    def full_text(self, language: str, transcript: str) -> str:
        """Prompt, transcript and what ends it."""
        return self.prompt_text(language) + transcript + self.end

    def announced(self, language: str) -> str:
        """The language as the prompt shall name it."""
        return self.options.language_as.get(language, language)

    def stand_in(self, language: str) -> str | None:
        """A line where the prompt has no name for the language; None: it has one, or names none."""
        nameless = self.prompt_text(_NO_LANGUAGE)
        if self.prompt_text(language) != nameless or self.prompt_text("en") == nameless:
            return None
        return (
            f"language {language}: this base's prompt has no name for it and names none; "
            f"base.language_as, or transcribe --language-as {language}=CODE, names another"
        )

    def instruction(self, language: str, own: str, nameless: str) -> str:
        """The user's instruction or else the authors' `own`, with the language's English name in it.

        Where the language has no name here, a braced instruction makes no sense: `nameless` is used.
        """
        name = languages.english_name(self.announced(language))
        if self.options.prompt is not None:
            return self.options.prompt.replace("{language}", name or language)
        return nameless if name is None else own.replace("{language}", name)

    def prompt(self, language: str) -> list[int]:
        return self.prompt_ids(language, 1)

    def prompt_of(self, clip: Clip, processed: Processed) -> list[int]:
        """Token ids of the prompt of `clip`, with its placeholders."""
        return self.prompt_ids(clip.language, processed.tokens)

    def prompt_ids(self, language: str, tokens: int) -> list[int]:
        """Token ids of the prompt with `tokens` placeholders."""
        # Only the first is the audio's: an instruction must not add any.
        text = self.prompt_text(language).replace(self.audio_token, self.audio_token * tokens, 1)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def rest_ids(self, language: str, transcript: str) -> list[int]:
        """Token ids of what follows the prompt in the training text.

        Tokenized by itself: generation starts from the prompt's own tokens, so the first label must not
        merge with the last of them, as `ASSISTANT:` and `hello` may where no control token parts them.
        """
        prompt, full = self.prompt_text(language), self.full_text(language, transcript)
        if not full.startswith(prompt):
            raise UserError(
                f"this base's chat template writes the prompt {prompt[-40:]!r} differently when "
                "an answer follows: training needs a template that writes it the same"
            )
        return list(self.tokenizer(full[len(prompt) :], add_special_tokens=False).input_ids)

    def answer_ids(self, clip: Clip) -> list[int]:
        """The transcript's token ids with what ends it; empty where the transcript is not known."""
        text = clip.text.strip()
        if not text:
            return [] if clip.speech else [self.end_id]
        own = self.tokenizer.encode(text, add_special_tokens=False)
        if not {self.audio_id, *self.stop, *self.tokenizer.all_special_ids}.isdisjoint(own):
            raise UserError(
                f"clip {clip.key}: its transcript {text[:40]!r} holds a control token of this base: "
                "remove it from the shards"
            )
        answer = self.rest_ids(clip.language, text)
        end = self._end(answer)
        return [*answer, self.end_id] if end is None else answer[: end + 1]

    def process_clip(self, clip: Clip) -> Processed:
        return self.process(audio_of(clip, self.window_s))

    def batch_of(
        self, clips: Sequence[Clip], processed: Sequence[Processed], audio: dict[str, Tensor]
    ) -> AdapterBatch:
        prompts = [self.prompt_of(clip, made) for clip, made in zip(clips, processed, strict=True)]
        answers = [self.answer_ids(clip) for clip in clips]
        # The last label is predicted, never read.
        sequences = [p + a[:-1] for p, a in zip(prompts, answers, strict=True)]
        ids, mask = _padded(sequences, self._pad_id, left=False)
        positions = torch.zeros_like(mask, dtype=torch.bool)
        for i, (sequence, answer) in enumerate(zip(sequences, answers, strict=True)):
            positions[i, len(sequence) - len(answer) : len(sequence)] = bool(answer)
        inputs = {"input_ids": ids, "attention_mask": mask, **audio}
        return AdapterBatch.of(clips, inputs, positions, answers, _encoder_rows(clips, processed))

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        processed = [self.process_clip(clip) for clip in clips]
        prompts = [self.prompt_of(clip, made) for clip, made in zip(clips, processed, strict=True)]
        ids, mask = _padded(prompts, self._pad_id, left=True)
        inputs = {"input_ids": ids, "attention_mask": mask, **side_by_side(processed)}
        return PromptBatch.of(clips, inputs, encoder_rows=_encoder_rows(clips, processed))

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        # No row is dropped: some of these models keep positions of the whole batch to themselves.
        batch = batch.on(model)
        ids = decode_greedily(
            model,
            {**batch.inputs, **batch.options},
            max_new_tokens=max_new_tokens,
            synced=synced,
            stop=self.stop,
            pad=self._pad_id,
        )
        new = ids[:, batch.inputs["input_ids"].shape[1] :].tolist()
        return [Transcript(self.transcript(row), self._end(row) is not None) for row in new]

    def transcript(self, ids: Sequence[int]) -> str:
        kept = list(ids)[: self._end(ids)]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()

    def _end(self, ids: Sequence[int]) -> int | None:
        """Where the first token that ends an answer is."""
        return next((i for i, token in enumerate(ids) if token in self.stop), None)

    @property
    def _pad_id(self) -> int:
        own = self.tokenizer.pad_token_id
        return self.end_id if own is None else int(own)


# The part of a message that stands for one clip: a template writes its placeholder, no sample is read.
AUDIO: dict[str, Any] = {"type": "audio", "audio": np.zeros(1, np.float32)}


def as_text(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """What a processor's chat template writes for `messages`, up to where the answer starts.

    A template that lets its LLM think first (Nemotron's) is told not to.
    """
    told = {"add_generation_prompt": True, "enable_thinking": False}
    return str(processor.apply_chat_template([list(messages)], tokenize=False, **told)[0])


def _encoder_rows(clips: Sequence[Clip], processed: Sequence[Processed]) -> Tensor:
    rows = torch.tensor([clip.row for clip in clips])
    elements = torch.tensor([h.elements for h in processed])
    return rows.repeat_interleave(elements)


def _padded(sequences: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    """(batch, tokens) ids, and a mask that is 0 where they are padding."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if left else slice(None, len(sequence))
        ids[i, place] = torch.tensor(sequence)
        mask[i, place] = 1
    return ids, mask
