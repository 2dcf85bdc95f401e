"""Shared by families that write a token per frame of 80 ms: words when they are said, padding between.

    frame       0  1  2  3  4  5  6  7  8  9
    Kyutai      P  W  ▁ко н  P  W  ▁пт иц а  P     pieces from the frame in which the word starts
    Voxtral     P  P  P  W  ▁ко н  W  ▁пт иц а     pieces behind the frame in which the word ends

P is padding, W the mark before a word. Pieces that find no room are written later, so that all of a
transcript is there: words that follow each other without a frame of padding have no mark between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from salsa_dist.data.clip import Clip
from salsa_dist.errors import UserError

FRAMES_PER_S = 12.5


def untimed(what: str) -> UserError:
    """The error about `what`, which has no word times."""
    return UserError(
        f"{what} has no word times, and this base learns when each word is said: 'salsa-dist shards align "
        "SHARDS OUT --base CTC_BASE' makes shards that have them"
    )


@dataclass(frozen=True)
class WordFrames:
    """What a base writes in its frames.

    Attributes:
        padding, mark: tokens; a mark stands in the frame before a word.
        ids_of: the pieces of a word.
    """

    padding: int
    mark: int
    ids_of: Callable[[str], Sequence[int]]

    def of(self, clip: Clip, frames: int, first_of: Callable[[float, float], float]) -> list[int]:
        """The tokens of the frames of a clip, (frames,).

        Args:
            frames: how many there are.
            first_of: the time of a word's first piece in seconds of frames, from its start and end.

        Raises:
            UserError: the clip has no word times, or its text takes more frames.
        """
        if clip.speech and clip.words is None:
            raise untimed(f"clip {clip.key}")
        said = (clip.words or ()) if clip.speech else ()
        starts = [int(first_of(start, end) * FRAMES_PER_S) for _, start, end in said]
        pieces = [self._pieces(clip, word) for word, _, _ in said]
        written = [self.padding] * frames
        waiting: deque[int] = deque()
        words = deque(zip(starts, pieces, strict=True))
        for t in range(frames):
            while words and words[0][0] <= t:
                waiting.extend(words.popleft()[1])
            if waiting:
                if t and written[t - 1] == self.padding:
                    written[t - 1] = self.mark
                written[t] = waiting.popleft()
        left = len(waiting) + sum(len(own) for _, own in words)
        if left:
            raise UserError(
                f"clip {clip.key}: the last {left} tokens of its text find no frame of 80 ms: check its "
                "word times, or remove it from the shards"
            )
        return written

    def weights(self, written: Sequence[int], padding: float) -> list[float]:
        """Of each token the weight of its loss: `padding` where no word is written, else 1."""
        return [padding if token in (self.padding, self.mark) else 1.0 for token in written]

    def text(self, written: Sequence[int]) -> list[int]:
        """The pieces alone."""
        return [token for token in written if token not in (self.padding, self.mark)]

    def _pieces(self, clip: Clip, word: str) -> list[int]:
        own = list(self.ids_of(word))
        if {self.padding, self.mark} & set(own):
            raise UserError(
                f"clip {clip.key}: its word {word[:40]!r} holds a control token of this base: remove it "
                "from the shards"
            )
        return own
