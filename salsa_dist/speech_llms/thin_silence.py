"""Short clips in a long window: training keeps 1 in `stride` encoder positions of the trailing padding.

    window      |-- clip --|00000000000000000000000|   all positions of Whisper's encoder
    kept        |-- clip --|   ·   ·   ·   ·   ·   |   all of the clip, and 1 in `stride` of the padding
    weight       1 1 1 1 1 1   8   8   8   8   8       in every attention over them

A key that replaces n positions has n times the weight in a softmax: log n is added to its score. This
is exact if the n positions are equal. In silence they nearly are: only their positional embeddings
differ. A window that is mostly silence then costs a fraction. A shorter window (`window_s`) removes the
silence instead, but the base processes it in evaluation. `benchmarks/thin_silence.py` measures both.

The kept positions of a clip depend on that clip alone, not on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salsa_dist.data.clip import Clip

# Behind a clip's end, in seconds: what still sounds there, and what convolutions carry over it.
_MARGIN_S = 0.5


def has_padding(clip: Clip, window_s: float) -> bool:
    """Whether there is padding behind `clip` that can be thinned out."""
    return clip.seconds + _MARGIN_S < window_s


def kept_positions(
    clips: Sequence[Clip], window: int, per_second: float, strides: Sequence[int]
) -> dict[str, Tensor]:
    """Positions to keep per clip, and the weight of each: the number of positions that it replaces.

    Args:
        clips: of a batch.
        window: positions of the whole window.
        per_second: positions of a second.
        strides: of each clip, positions of trailing padding per kept one.

    Returns:
        Arguments for a model that `thin_out` has prepared: `kept_positions` and `stand_for`,
        both (batch, kept) int64. Clips with fewer positions are padded with weight 0.
    """
    kept, counts = [], []
    for clip, stride in zip(clips, strides, strict=True):
        sounding = min(window, round((clip.seconds + _MARGIN_S) * per_second))
        starts = torch.arange(sounding, window, stride)
        sizes = (starts + stride).clamp(max=window) - starts
        kept.append(torch.cat([torch.arange(sounding), starts + sizes // 2]))
        counts.append(torch.cat([torch.ones(sounding, dtype=torch.long), sizes]))
    pad = nn.utils.rnn.pad_sequence
    return {"kept_positions": pad(kept, batch_first=True), "stand_for": pad(counts, batch_first=True)}


class ThinsPadding:
    """What a family has beside that thins the trailing padding of its window.

    Attributes:
        window_s: the window in seconds.
        positions: of the encoder in the window.
        thins_padding: the model must accept `kept_positions`.
        silence_stride: of a clip whose row has none of its own.
        silence_strides: of the adapter of each row.
    """

    THINS_PADDING: bool = True
    window_s: float
    positions: int
    thins_padding: bool
    silence_stride: int
    silence_strides: tuple[int, ...] = ()

    def thin(self, silence_stride: int | Literal["auto"]) -> None:
        """Take the option; auto: 1 until training tells `silence_strides`."""
        self.thins_padding = silence_stride != 1
        self.silence_stride = 1 if silence_stride == "auto" else silence_stride

    def kept(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """The positions that training keeps (`kept_positions`); empty if it keeps all."""
        own = self.silence_strides
        rows = [clip.row for clip in clips]
        strides = [own[r] if 0 <= r < len(own) else self.silence_stride for r in rows]
        if set(strides) == {1}:
            return {}
        return kept_positions(clips, self.positions, self.positions / self.window_s, strides)


def thin_out(model: nn.Module, encoder: Sequence[nn.Module], decoder: Sequence[nn.Module]) -> None:
    """Make `model` accept `kept_positions` and `stand_for`; without them it keeps all positions.

    It works by hooks before the layers, so it goes with whatever is hooked behind them or wrapped
    around their inside.

    Args:
        model: takes the arguments.
        encoder: its encoder's layers; what they get beside (batch, positions, hidden) is an
            `attention_mask`, None so far.
        decoder: its decoder's layers, which get an `encoder_attention_mask`.
    """
    now: dict[str, Tensor] = {}

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        kept, stand_for = kwargs.pop("kept_positions", None), kwargs.pop("stand_for", None)
        if kept is not None:
            now["kept"] = kept.unsqueeze(-1)
            # log 0 is -inf: padding gets no attention.
            now["scores"] = stand_for.float().log()[:, None, None, :]
        return args, kwargs

    def end(module: nn.Module, args: Any, output: Any) -> None:
        now.clear()

    def thin(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not now:
            return None
        hidden, *others = args
        kept = now["kept"].expand(-1, -1, hidden.shape[-1])
        return (hidden.gather(1, kept), *others), kwargs

    def weigh(name: str, place: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if not now:
                return None
            scores = now["scores"].to(args[0].dtype)
            if len(args) > place:
                return (*args[:place], scores, *args[place + 1 :]), kwargs
            return args, {**kwargs, name: scores}

        return hook

    model.register_forward_pre_hook(begin, with_kwargs=True)
    model.register_forward_hook(end, always_call=True)
    encoder[0].register_forward_pre_hook(thin, with_kwargs=True)
    for layer in encoder:
        layer.register_forward_pre_hook(weigh("attention_mask", 1), with_kwargs=True)
    for layer in decoder:
        layer.register_forward_pre_hook(weigh("encoder_attention_mask", 3), with_kwargs=True)
