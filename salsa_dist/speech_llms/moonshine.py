"""Moonshine's encoder, told which frames are a clip's own; and MoonshineStreaming's decoder.

    samples   384 p + 511   ─ conv1 ─>  6 p + 7   ─ group norm over all ─ conv2, conv3 ─>   p frames

Its group norm takes mean and variance over all frames of a row, so that padding changes a clip, and its
attention mask counts frames that padding reaches into. So a clip gets silence up to a whole frame (at
most 24 ms), its mask names its own frames, and the norm takes only what these are made of: any batch
gives what the clip alone gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# The convolutions: widths 127, 7, 3 and strides 64, 3, 2.
_STRIDE, _WIDTH = 384, 895
# Samples of a frame of MoonshineStreaming, and of the silence behind a clip: its two convolutions halve
# the frames and see four behind the last.
_FRAME, _BEHIND = 80, 2_000


def whole_frames(audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Samples with silence behind them up to a whole frame, and how many the mask shall count.

    Args:
        audio: (samples,) float32.
    """
    frames = 1 + max(0, -(-(len(audio) - _WIDTH) // _STRIDE))
    audio = np.pad(audio, (0, _WIDTH + _STRIDE * (frames - 1) - len(audio)))
    # The encoder reads the mask at every 384th sample.
    return audio, 1 + _STRIDE * (frames - 1)


def silence_behind(audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The same for MoonshineStreaming: what it sees behind any clip is silence."""
    own = len(audio) + -len(audio) % _FRAME
    return np.pad(audio, (0, own + _BEHIND - len(audio))), own


class _OwnFramesNorm(nn.GroupNorm):
    """A group norm of one group over each row's own frames.

    Attributes:
        own: (batch,) int64, the frames of conv1 that are a row's own; None: all.
    """

    own: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, channels, frames), of the same shape; fp32 within."""
        if self.own is None:
            return super().forward(hidden)
        there = torch.arange(hidden.shape[-1], device=hidden.device) < self.own[:, None, None]
        numbers = self.own[:, None, None] * hidden.shape[1]
        values = hidden.float()
        mean = (values * there).sum((1, 2), keepdim=True) / numbers
        spread = ((values - mean).square() * there).sum((1, 2), keepdim=True) / numbers
        values = (values - mean) * (spread + self.eps).rsqrt()
        return (values * self.weight[:, None] + self.bias[:, None]).to(hidden.dtype)


def own_frames_norm(encoder: Any) -> None:
    """Have `encoder` normalise each row over its own frames, in place; names of weights stay."""
    old = encoder.groupnorm
    norm = _OwnFramesNorm(old.num_groups, old.num_channels, old.eps, affine=False)
    norm.weight, norm.bias = old.weight, old.bias
    encoder.groupnorm = norm.eval()

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        # A last frame of conv3 is made of 13 frames of conv1, the others of 6 each.
        norm.own = None if mask is None else 6 * ((mask.sum(-1) + _STRIDE - 1) // _STRIDE) + 7

    encoder.register_forward_pre_hook(tell, with_kwargs=True)


def keep_what_is_read(decoder: Any) -> None:
    """Have MoonshineStreaming's `decoder` add its positions to a copy of what the encoder puts out.

    transformers adds them in place, once more at each step of a decoding without a cache.
    """

    def copy(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"].clone()}

    decoder.register_forward_pre_hook(copy, with_kwargs=True)
