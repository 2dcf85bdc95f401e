"""Audio windows: clips that are too long or too short, and shorter encoder windows.

    audio            |-- clip --|
    fixed window     |-- clip --|0000000000000|   features of the whole window
    embed_positions  |########################|   cut to the window by `shorten`

Encoders of Whisper's kind are built for one window, whatever the clip's length. A shorter window
keeps the first positions of their embedding: it costs less and changes the base.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError

# Shorter clips get silence behind them: some encoders make no token at all of a few milliseconds.
_SHORTEST = SAMPLE_RATE // 10


def audio_of(clip: Clip, window_s: float) -> NDArray[np.float32]:
    """The clip's samples, at least a tenth of a second of them, within the window.

    Raises:
        UserError: the clip is longer than the window.
    """
    if clip.seconds > window_s + 1e-6:
        raise UserError(
            f"clip {clip.key} lasts {clip.seconds:.1f} s, the audio window is "
            f"{window_s:g} s: cut it, or set a longer window_s"
        )
    return np.pad(clip.audio, (0, max(0, _SHORTEST - len(clip.audio))))


def longest(own_s: float, window_s: float | None) -> float:
    """The window in seconds: the base's own, or a shorter one that was asked for."""
    if window_s is not None and window_s > own_s + 1e-6:
        raise UserError(f"window_s is {window_s:g}, this base's window is {own_s:g} s at most")
    return own_s if window_s is None else window_s


def fixed(extractor: Any, positions: int, window_s: float | None, step: int = 2) -> tuple[Any, int]:
    """A copy of a Whisper feature extractor that pads to the window, and the window's positions.

    Args:
        extractor: a WhisperFeatureExtractor.
        positions: of the base's own window; each takes two frames.
        window_s: seconds asked for; None: the base's own.
        step: the window is a multiple of this many frames.
    """
    hop = extractor.hop_length
    seconds = longest(2 * positions * hop / SAMPLE_RATE, window_s)
    frames = step * max(1, round(seconds * SAMPLE_RATE / hop / step))
    extractor = copy.deepcopy(extractor)
    extractor.n_samples = frames * hop
    extractor.nb_max_frames = frames
    extractor.chunk_length = frames * hop / SAMPLE_RATE
    return extractor, frames // 2


def shorten(encoder: Any, positions: int) -> None:
    """Keep the first `positions` of an encoder's position embedding, in place."""
    old = encoder.embed_positions
    if positions == old.num_embeddings:
        return
    like = {"dtype": old.weight.dtype, "device": old.weight.device}
    new = nn.Embedding(positions, old.embedding_dim, **like)
    new.weight.data.copy_(old.weight.data[:positions])
    new.requires_grad_(False)
    encoder.embed_positions = new
    encoder.max_source_positions = positions
    encoder.config.max_source_positions = positions
