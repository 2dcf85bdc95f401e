"""CTC without a model: the tokens of a transcript, the frames that they take, its loss, the best path.

    frames       ∅  k  k  ∅  o  n  n  ∅      greedy: repeats become one, blanks are dropped
    transcript      k        o  n

The loss of a clip is that of all alignments of its transcript with its frames (Graves et al. 2006).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import frames_of

_MASKS = ("attention_mask", "padding_mask")


class FrameCounts:
    """How many frames an encoder makes, known without the model: data workers have none.

    Args:
        model: it tells of any length how many frames it makes; not kept.
        hop: samples of one place of its input; 1: it reads samples.
        window_s: the longest clip, in seconds.
    """

    def __init__(self, model: Any, hop: int, window_s: float) -> None:
        counts = frames_of(model, torch.arange(round((window_s + 1) * SAMPLE_RATE / hop)))
        # The shortest input of each number of frames.
        self._shortest = [int(i) + 1 for i in counts.clamp_min(0).diff().nonzero()]

    def own(self, features: dict[str, Tensor]) -> int:
        """Frames of the one clip that `features` are of; 1 at least."""
        mask = next((features[name] for name in _MASKS if name in features), None)
        length = _width(features) if mask is None else int(mask.sum())
        return max(1, bisect_right(self._shortest, length))

    def made(self, features: dict[str, Tensor]) -> int:
        """Frames that the encoder makes of `features`: Parakeet's gets a frame of padding."""
        return bisect_right(self._shortest, _width(features))


def written(clip: Clip, tokenizer: Any, blank: int, read: Callable[[Sequence[int]], str]) -> list[int]:
    """The transcript's tokens, in capitals or small letters where the base has these alone, without
    characters that it can't write.

    Args:
        clip: its text is written.
        tokenizer: of the base.
        blank: the blank's token.
        read: the text of tokens.

    Raises:
        UserError: it can't write most of the letters and digits; or nobody speaks, for which CTC
            has no label.
    """
    if not clip.speech:
        raise UserError(
            f"clip {clip.key}: it has no speech, and a CTC base has no label for that: remove it "
            "from the shards"
        )
    text = clip.text.strip()
    not_said = (blank, tokenizer.unk_token_id)
    ids: list[int] = max(
        (
            [i for i in tokenizer(t, add_special_tokens=False).input_ids if i not in not_said]
            for t in (text, text.lower(), text.upper())
        ),
        key=len,
    )
    # Not the tokens: those of spaces are there in every script.
    known, said = (sum(map(str.isalnum, t)) for t in (read(ids), text))
    if text and (not known or 2 * known < said):
        raise UserError(
            f"clip {clip.key}: this base has no token for most characters of {text[:40]!r}: take a "
            "base for this language's script"
        )
    return ids


def spread_over(
    clips: Sequence[Clip], labels: Sequence[Sequence[int]], frames: Sequence[int], longest: int
) -> Tensor:
    """(clips, longest) bool: the frames of each clip that has labels.

    Raises:
        UserError: a transcript needs more frames: one for each token, and a blank between two that
            are the same.
    """
    spoken = torch.zeros(len(clips), longest, dtype=torch.bool)
    for i, (clip, ids, own) in enumerate(zip(clips, labels, frames, strict=True)):
        needed = len(ids) + sum(a == b for a, b in pairwise(ids))
        if needed > own:
            raise UserError(
                f"clip {clip.key}: its transcript needs {needed} frames, its audio gives "
                f"{own}: remove it from the shards"
            )
        spoken[i, :own] = bool(ids)
    return spoken


def best_path(frames: Sequence[int], blank: int) -> list[int]:
    """The tokens that the best token of each frame stands for."""
    return [token for token, _ in groupby(frames) if token != blank]


def shares(logits: Tensor, frames: Tensor, labels: Tensor, counts: Tensor, blank: int) -> Tensor:
    """Each label's equal share of its clip's loss, (labels,) fp32.

    Args:
        logits: (frames, vocabulary) of all clips, one behind the other.
        frames: (clips,) int64 on the CPU, how many each clip has.
        labels: (labels,) int64, of all clips.
        counts: (clips,) int64 on the CPU, how many each clip has.
        blank: the blank's token.
    """
    if not len(counts):
        return logits.float().sum(-1)[:0]
    # In fp64: the sum over alignments is in logarithms of some hundreds, whose rounding in fp32 is
    # a relative error of 1e-5 in the gradient.
    each = pad_sequence(list(logits.double().log_softmax(-1).split(frames.tolist())))
    # On a GPU its backward pass has no kernel whose sums are always in the same order.
    device = "cpu" if torch.are_deterministic_algorithms_enabled() else logits.device
    losses = ctc_loss(each.to(device), labels.to(device), frames, counts, blank, reduction="none")
    shares = (losses / counts.to(losses)).repeat_interleave(counts.to(device))
    return shares.to(logits.device, torch.float32)


def _width(features: dict[str, Tensor]) -> int:
    made = features.get("input_features")
    return features["input_values"].shape[-1] if made is None else made.shape[1]
