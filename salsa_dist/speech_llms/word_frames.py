"""Shared by families that write a token per frame of 80 ms: words when they are said, padding between.

    frame       0  1  2  3  4  5  6   7  8  9
    Kyutai      P  W  ▁ко н  P  W  ▁пт иц а  P     pieces from the frame in which the word starts
    Voxtral     P  P  W  ▁ко н  P  W  ▁пт иц а     pieces behind the frame in which the word ends

P is padding, W the mark before a word. Pieces that find no room are written later, so that all of a
transcript is there: words that follow each other without a frame of padding have no mark between them.

Input is the prompt and what was written so far, beside the audio; each frame is a label. A transcript
ends with its audio.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript
from salsa_dist.speech_llms.processed import ClipByClip, Processed

FRAMES_PER_S = 12.5
# Of padding and marks, most of all labels: `text_padding_weight` of kyutai-labs/moshi-finetune.
_PADDING_WEIGHT = 0.5


def untimed(what: str) -> UserError:
    """The error about `what`, which has no word times."""
    return UserError(
        f"{what} has no word times, and this base learns when each word is said: 'salsa-dist shards "
        "align SHARDS OUT --base CTC_BASE' makes shards that have them"
    )


class FrameFamily(ClipByClip):
    """Training batches and transcripts of such a family.

    `Processed.tokens` of a clip is the number of its frames.

    Attributes:
        tokenizer: of the pieces.
        padding, mark: tokens; a mark stands in the frame before a word.
        UNREAD: positions of the audio behind the one that writes the last frame.
    """

    LEARNS_WORD_TIMES: bool = True
    UNREAD: ClassVar[int] = 0
    tokenizer: Any
    padding: int
    mark: int

    @abstractmethod
    def pieces(self, word: str) -> list[int]:
        """The tokens of a word."""

    @abstractmethod
    def first_frame(self, start: float, end: float) -> int:
        """The frame of the first piece of a word, from its start and end in seconds."""

    def written(self, clip: Clip, frames: int) -> list[int]:
        """The tokens of all frames, (frames,); none where the transcript is not known.

        Raises:
            UserError: the clip has no word times, or its text takes more frames.
        """
        if clip.speech and not clip.text.strip():
            return []
        if clip.speech and clip.words is None:
            raise untimed(f"clip {clip.key}")
        words = deque((clip.words or ()) if clip.speech else ())
        found = [self.padding] * frames
        waiting: deque[int] = deque()
        for t in range(frames):
            while words and self.first_frame(*words[0][1:]) <= t:
                waiting.extend(self._pieces(clip, words.popleft()[0]))
            if waiting:
                if t and found[t - 1] == self.padding:
                    found[t - 1] = self.mark
                found[t] = waiting.popleft()
        if waiting or words:
            last = words[-1][0] if words else self.tokenizer.decode(list(waiting))
            raise UserError(
                f"clip {clip.key}: the end of its text, {last[:40]!r}, finds no frame of 80 ms: check "
                "its word times, or remove it from the shards"
            )
        return found

    def batch_of(
        self, clips: Sequence[Clip], processed: Sequence[Processed], audio: dict[str, Tensor]
    ) -> AdapterBatch:
        prompts = [self.prompt(clip.language) for clip in clips]
        labels = [self.written(clip, h.tokens) for clip, h in zip(clips, processed, strict=True)]
        lengths = (len(p) + h.tokens - 1 for p, h in zip(prompts, processed, strict=True))
        ids = torch.full((len(clips), max(lengths) + self.UNREAD), self.padding)
        positions = torch.zeros_like(ids, dtype=torch.bool)
        for i, (prompt, own) in enumerate(zip(prompts, labels, strict=True)):
            read = [*prompt, *own[:-1]]
            ids[i, : len(read)] = torch.tensor(read)
            positions[i, len(prompt) - 1 : len(prompt) - 1 + len(own)] = True
        weights = [_PADDING_WEIGHT if self._silent(i) else 1.0 for own in labels for i in own]
        batch = AdapterBatch.of(clips, {"input_ids": ids, **audio}, positions, labels)
        return replace(batch, label_weights=torch.tensor(weights))

    @staticmethod
    def without_frames(batch: PromptBatch) -> tuple[list[int], dict[str, Any]]:
        """How many frames each clip of a prompt batch has, and its other options."""
        return batch.options["frames"], {k: v for k, v in batch.options.items() if k != "frames"}

    def transcripts(
        self, rows: Iterable[Sequence[int]], frames: Sequence[int], most: int
    ) -> list[Transcript]:
        """What generated `rows` say.

        Args:
            frames: how many each clip has; what stands behind them is of a longer one beside it.
            most: pieces of a transcript; frames without a word don't count.
        """
        found = []
        for row, own in zip(rows, frames, strict=True):
            said = [token for token in row[:own] if not self._silent(token)]
            found.append(Transcript(self.transcript(said[:most]), len(said) <= most))
        return found

    def transcript(self, ids: Sequence[int]) -> str:
        said = [token for token in ids if not self._silent(token)]
        return str(self.tokenizer.decode(said, skip_special_tokens=True)).strip()

    def _silent(self, token: int) -> bool:
        return token in (self.padding, self.mark)

    def _pieces(self, clip: Clip, word: str) -> list[int]:
        own = self.pieces(word)
        if {self.padding, self.mark, *self.tokenizer.all_special_ids} & set(own):
            raise UserError(
                f"clip {clip.key}: its word {word[:40]!r} holds a control token of this base: remove "
                "it from the shards"
            )
        return own
