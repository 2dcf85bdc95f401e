"""Several clips joined in one audio window.

    one reader's samples of a step    7   12   15   21   30      joined up to three at a time:
    windows                          [7] [12 · 15 · 21] [30]     how many is random for each

A base with a window of fixed length costs the same for any content: Whisper pays for 30 s where a
clip lasts two. Joined, that pays for several transcripts. The number varies, so that clips alone are
met too.

Only clips of one reader and one language meet, and their lengths in the index decide what fits:
windows depend on the step alone, as its samples do, and every rank knows how many each has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from salsa_dist.data.clip import SAMPLE_RATE, Clip, Word
from salsa_dist.data.sampling import Sample
from salsa_dist.data.word_times import moved

PAUSE_S = 0.4  # between two clips
_PAUSE = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.float32)
_JOIN = 0x4A4F494E  # keeps these random numbers apart from a plan's


def windows(
    samples: Sequence[Sample], seed: int, step: int, most: int, max_seconds: float
) -> list[list[Sample]]:
    """`samples` of one adapter's step, grouped by window.

    Args:
        seed: the adapter's.
        most: clips of one window, at most.
        max_seconds: the base's audio window.
    """
    found: list[list[Sample]] = []
    by_reader: dict[tuple[int, str], list[Sample]] = {}
    for sample in samples:
        by_reader.setdefault((sample.reader, sample.shard.language), []).append(sample)
    for (reader, language), own in sorted(by_reader.items()):
        rng = np.random.default_rng([seed, step, reader, *language.encode(), _JOIN])
        room, seconds = 0, 0.0
        for sample in own:
            seconds += PAUSE_S + sample.entry.seconds
            if room == 0 or seconds > max_seconds:
                found.append([])
                room, seconds = int(rng.integers(1, most + 1)), sample.entry.seconds
            found[-1].append(sample)
            room -= 1
    return found


def joined(clips: Sequence[Clip]) -> Clip:
    """One clip made of `clips`, in order, with pauses, and spaces between transcripts.

    All have the same weight, which is the weight of the whole.
    """
    if len(clips) == 1:
        return clips[0]
    audio = [part for clip in clips for part in (_PAUSE, clip.audio)][1:]
    words: list[Word] | None = []
    later = 0.0
    for clip in clips:
        if words is not None and clip.speech:
            words = None if clip.words is None else [*words, *moved(clip.words, later)]
        later += clip.seconds + PAUSE_S
    return replace(
        clips[0],
        key=" + ".join(clip.key for clip in clips),
        audio=np.concatenate(audio),
        text=" ".join(clip.text.strip() for clip in clips if clip.speech),
        speech=any(clip.speech for clip in clips),
        words=None if words is None else tuple(words),
    )
