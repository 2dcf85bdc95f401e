"""Audio longer than a base's window, at inference: split at quiet points, and its texts joined.

    clip      |--------------------------- 70 s ---------------------------|
    pieces    |------ 27 s ------|------- 29 s -------|------ 14 s ------|
                                ^ the quietest tenth of a second in the last quarter of a window

A piece is a clip like any other, steered by its clip's adapter. Training takes no such clip: its
transcript can't be cut along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.speech_llms import languages
from salsa_dist.speech_llms.batch import Transcript

_PAUSE = SAMPLE_RATE // 10
# The share of a window in which the pause is looked for.
_SEARCHED = 0.25


def pieces(clip: Clip, window_s: float) -> list[Clip]:
    """The clip itself, or what it is cut into: each at most `window_s` seconds long."""
    cut = [part.audio for part in parts([clip.audio], window_s)]
    if len(cut) == 1:
        return [clip]
    return [replace(clip, key=f"{clip.key}#{i}", audio=part, text="") for i, part in enumerate(cut)]


@dataclass(frozen=True)
class Part:
    """`(samples,)` of a recording, at most a window long; whether it is the last."""

    audio: NDArray[np.float32]
    last: bool


def parts(blocks: Iterable[NDArray[np.float32]], window_s: float) -> Iterator[Part]:
    """What a recording is cut into, which comes in blocks and is never held whole.

    Where it is cut does not depend on the blocks. A recording without any sample is one empty part.
    """
    window = round(window_s * SAMPLE_RATE)
    audio = np.zeros(0, np.float32)
    for block in blocks:
        audio = np.concatenate([audio, block]) if len(audio) else block
        while len(audio) > window:
            end = _pause(audio, window)
            # A copy: what is cut off must not hold the rest in memory.
            yield Part(audio[:end].copy(), last=False)
            audio = audio[end:]
    yield Part(audio, last=True)


def most_pieces(seconds: float, window_s: float) -> int:
    """How many pieces a clip of so many seconds has at most."""
    if seconds <= window_s:
        return 1
    return 1 + int((seconds - window_s) / (window_s * (1 - _SEARCHED)) + 1)


def joined(transcripts: Sequence[Transcript], language: str) -> Transcript:
    """The transcript of a clip from those of its pieces."""
    space = "" if languages.has_no_spaces(language) else " "
    text = space.join(t.text for t in transcripts if t.text)
    return Transcript(text, all(t.finished for t in transcripts))


def _pause(audio: NDArray[np.float32], window: int) -> int:
    """Where to cut: the middle of the quietest stretch near the end of the first `window` samples."""
    first = round(window * (1 - _SEARCHED))
    searched = audio[first:window].astype(np.float64)
    if len(searched) <= _PAUSE:
        return window
    energy = np.cumsum(np.concatenate([[0.0], searched**2]))
    return first + int(np.argmin(energy[_PAUSE:] - energy[:-_PAUSE])) + _PAUSE // 2
