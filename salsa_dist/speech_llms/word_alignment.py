"""When each word of a transcript is said, told by an encoder with CTC: forced alignment.

    frames       ∅  k  k  ∅  o  n  n  ∅  |  v  u  k      the likeliest path that gives the transcript
    words        ╰──── kon ────╯              ╰─ vuk ─╯

The path is the most likely one of all alignments of CTC (Graves et al. 2006), found by Viterbi. It is
ours because torchaudio's `forced_align` is compiled, and does not run beside a torch of another build.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from salsa_dist.data.clip import SAMPLE_RATE, Clip, Word
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.ctc import Ctc
from salsa_dist.speech_llms.ctc_alignment import spread_over
from salsa_dist.speech_llms.inspection import read_config
from salsa_dist.speech_llms.load import SpeechLLM, family_of
from salsa_dist.speech_llms.window import audio_of


def refuse_without_ctc(name: str, revision: str | None) -> None:
    """Refuse a base that is no encoder with CTC, before its weights are read.

    Raises:
        UserError: it is none, or can't be read.
    """
    if not issubclass(family_of(read_config(name, revision).model_type), Ctc):
        raise UserError(
            f"base {name} is no encoder with CTC: name one with --base, such as "
            "facebook/wav2vec2-large-960h"
        )


class WordTimes:
    """Tells the word times of clips.

    Args:
        base: an encoder with CTC.
    """

    def __init__(self, base: SpeechLLM) -> None:
        assert isinstance(base.family, Ctc)
        self._family: Ctc = copy(base.family)
        self._family.padded_to_s = None  # each clip runs alone, so it needs no padding
        self._model: Any = base.model

    @torch.no_grad()
    def of(self, clip: Clip) -> tuple[Word, ...]:
        """The words of `clip` with their times. Words are what spaces divide.

        A word without a character that the base can write is said where the one before it ends.

        Raises:
            UserError: the base can't write most of its text, or the clip is shorter than its text.
        """
        if not clip.speech:
            return ()
        words = clip.text.split()
        ids, word_of = self._tokens(clip, words)
        made = self._family.process_clip(clip)
        spread_over([clip], [ids], [made.tokens], made.tokens)  # refuses what has too few frames
        weight = next(self._model.parameters())
        features = {
            name: t.to(weight.device, self._model.dtype if t.is_floating_point() else None)
            for name, t in made.features.items()
        }
        logits = self._model(**features).logits[0, : made.tokens]
        path = likeliest(logits.float().log_softmax(-1).cpu().numpy(), ids, self._family.blank)
        audio = audio_of(clip, self._family.window_s)
        frame_s = len(audio) / SAMPLE_RATE / made.tokens
        found: list[Word] = []
        for i, word in enumerate(words):
            frames = np.flatnonzero(np.isin(path, [j for j, own in enumerate(word_of) if own == i]))
            start = end = found[-1][2] if found else 0.0
            if len(frames):
                start, end = int(frames[0]) * frame_s, (int(frames[-1]) + 1) * frame_s
            start, end = (round(min(t, clip.seconds), 3) for t in (start, end))
            found.append((word, start, end))
        return tuple(found)

    def _tokens(self, clip: Clip, words: list[str]) -> tuple[list[int], list[int]]:
        """The tokens of the transcript, and the word of each; -1 for the one between two words."""
        tokenizer = self._family.tokenizer
        not_said = (self._family.blank, tokenizer.unk_token_id)

        def ids_of(text: str) -> list[int]:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            return [i for i in ids if i not in not_said]

        self._family.text_ids(clip)  # refuses a text of which the base can write little
        # The case that it can write most of.
        cases = (words, [w.lower() for w in words], [w.upper() for w in words])
        spelled = max(cases, key=lambda case: len(ids_of(" ".join(case))))
        read = 0
        kept: list[int] = []
        word_of: list[int] = []
        for i in range(len(words)):
            so_far = ids_of(" ".join(spelled[: i + 1]))
            for token in so_far[read:]:
                between = not self._family.transcript([token]).strip()
                if not between or (word_of and word_of[-1] != -1):
                    kept.append(token)
                    word_of.append(-1 if between else i)
            read = len(so_far)
        if not kept:
            raise UserError(f"clip {clip.key}: the base can write no letter of its text")
        return kept, word_of


def likeliest(scores: NDArray[np.float32], labels: list[int], blank: int) -> NDArray[np.int64]:
    """The likeliest alignment: of each frame the number of its label, (frames,); -1 for a blank.

    Args:
        scores: (frames, vocabulary), logarithms of probabilities.
        labels: no more than there are frames, counting a blank between two that are the same.
        blank: the blank's token.
    """
    # States: a blank before, between and behind the labels.
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    # From a label to the next one without a blank, where the two differ.
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf)
    best[:2] = scores[0, states[:2]]
    came = np.zeros((len(scores), len(states)), np.int8)  # by how many states
    for t in range(1, len(scores)):
        before = np.full((3, len(states)), -np.inf)
        before[0] = best
        before[1, 1:] = best[:-1]
        before[2, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        came[t] = before.argmax(0)
        best = before.max(0) + scores[t, states]
    state = len(states) - 1 - int(len(states) > 1 and best[-2] > best[-1])
    path = np.empty(len(scores), np.int64)
    for t in range(len(scores) - 1, -1, -1):
        path[t] = state // 2 if state % 2 else -1
        state -= came[t, state]
    return path
