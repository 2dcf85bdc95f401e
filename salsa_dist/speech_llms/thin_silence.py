"""Short clips in a long window: training keeps 1 in `stride` encoder positions of the trailing padding.

    window      |-- clip --|00000000000000000000000|   all positions of Whisper's encoder
    kept        |-- clip --|   ·   ·   ·   ·   ·   |   all of the clip, and 1 in `stride` of the padding
    weight       1 1 1 1 1 1   8   8   8   8   8       in every attention over them
    auto        |-- clip --|···  ·   ·   ·   ·  ···|   both ends of the padding are kept too

A key that replaces n positions has n times the weight in a softmax: log n is added to its score. This
is exact if the n positions are equal. In silence they nearly are: only their positional embeddings
differ, and these matter most at both ends, which `auto` and `silence_ends_s` keep. A window that is
mostly silence then costs a fraction. A shorter window (`window_s`) removes the silence instead, but
the base processes it in evaluation. `benchmarks/thin_silence.py` measures both.

The convolutions before the encoder's layers compute the kept positions and their neighbours alone.
The kept positions of a clip depend on that clip alone, not on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salsa_dist.data.clip import Clip

# Behind a clip's end, in seconds: what still sounds there, and what convolutions carry over it.
_MARGIN_S = 0.5
# Share of the window that `auto` keeps whole at each end of the padding.
_END = 1 / 60


def kept_positions(
    clips: Sequence[Clip],
    window: int,
    per_second: float,
    strides: Sequence[int],
    end: int = 0,
) -> dict[str, Tensor]:
    """Positions to keep per clip, and the weight of each: the number of positions that it replaces.

    Args:
        clips: of a batch.
        window: positions of the whole window.
        per_second: positions of a second.
        strides: of each clip, positions of trailing padding per kept one.
        end: positions at each end of the padding that are all kept.

    Returns:
        Arguments for a model that `thin_out` has prepared, all int64: `kept_positions` and `stand_for`,
        both (batch, kept); `computed_positions`, (batch, computed), those that the convolutions
        compute, and `computed_places`, (batch, kept), the place of each kept one among them. Clips with
        fewer positions are padded with weight 0, and with -1 in `computed_positions`.
    """
    kept, counts, computed, places = [], [], [], []
    for clip, stride in zip(clips, strides, strict=True):
        first = min(window, round((clip.seconds + _MARGIN_S) * per_second) + end)
        last = max(first, window - end)
        starts = torch.arange(first, last, stride)
        sizes = (starts + stride).clamp(max=last) - starts
        own = torch.cat([torch.arange(first), starts + sizes // 2, torch.arange(last, window)])
        one = torch.ones(window, dtype=torch.long)
        near = (own.unsqueeze(1) + torch.tensor([-1, 0, 1])).unique()
        near = near[(near >= 0) & (near < window)]
        kept.append(own)
        counts.append(torch.cat([one[:first], sizes, one[last:]]))
        computed.append(near)
        places.append(torch.searchsorted(near, own))
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return {
        "kept_positions": pad(kept),
        "stand_for": pad(counts),
        "computed_positions": pad(computed, padding_value=-1),
        "computed_places": pad(places),
    }


class ThinsPadding:
    """What a family has beside that thins the trailing padding of its window.

    Attributes:
        window_s: the window in seconds.
        positions: of the encoder in the window.
        thins_padding: the model must accept `kept_positions`.
        silence_stride: of a clip whose row has none of its own.
        silence_strides: of the adapter of each row, by `auto`.
        silence_ends_s: seconds at each end of the padding that are kept whole.
    """

    THINS_PADDING: bool = True
    window_s: float
    positions: int
    thins_padding: bool
    silence_stride: int
    silence_strides: tuple[int, ...] = ()
    silence_ends_s: float

    def thin(self, silence_stride: int | Literal["auto"]) -> None:
        """Take the option; auto: 1 until training tells `silence_strides`."""
        self.thins_padding = silence_stride != 1
        self.silence_stride = 1 if silence_stride == "auto" else silence_stride
        # A number keeps no ends where nobody asks for them, as in release 0.1.
        self.silence_ends_s = _END * self.window_s if silence_stride == "auto" else 0.0

    def has_padding(self, clip: Clip) -> bool:
        """Whether there is padding behind `clip` that can be thinned out."""
        return clip.seconds + _MARGIN_S + 2 * self.silence_ends_s < self.window_s

    def kept(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """The positions that training keeps (`kept_positions`); empty if it keeps all."""
        own = self.silence_strides
        rows = [clip.row for clip in clips]
        strides = [own[r] if 0 <= r < len(own) else self.silence_stride for r in rows]
        if set(strides) == {1}:
            return {}
        per_second = self.positions / self.window_s
        end = round(self.silence_ends_s * per_second)
        return kept_positions(clips, self.positions, per_second, strides, end)


def thin_out(
    model: nn.Module,
    convolutions: tuple[nn.Module, nn.Module],
    encoder: Sequence[nn.Module],
    decoder: Sequence[nn.Module],
) -> None:
    """Make `model` accept what `kept_positions` returns; without it, it keeps all positions.

    It works by hooks before the layers, so it goes with whatever is hooked behind them or wrapped
    around their inside.

    Args:
        model: takes the arguments.
        convolutions: of its encoder: over three frames each; the second has a stride of two.
        encoder: its encoder's layers; what they get beside (batch, positions, hidden) is an
            `attention_mask`, None so far.
        decoder: its decoder's layers, which get an `encoder_attention_mask`.
    """
    now: dict[str, Any] = {}

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        kept, stand_for = kwargs.pop("kept_positions", None), kwargs.pop("stand_for", None)
        computed, places = kwargs.pop("computed_positions", None), kwargs.pop("computed_places", None)
        if kept is not None:
            now["kept"], now["computed"], now["places"] = kept.unsqueeze(-1), computed, places
            # log 0 is -inf: padding gets no attention.
            now["scores"] = stand_for.float().log()[:, None, None, :]
        return args, kwargs

    def end(module: nn.Module, args: Any, output: Any) -> None:
        now.clear()

    def cut(module: nn.Module, args: tuple[Tensor]) -> Any:
        """(batch, mel, frames): those of the positions that are computed."""
        if not now:
            return None
        [features] = args
        now["window"] = features.shape[-1] // 2
        two = torch.arange(2, device=features.device)
        frames = (2 * now["computed"].unsqueeze(-1) + two).flatten(1).unsqueeze(1)
        found = features.gather(2, frames.clamp_min(0).expand(-1, features.shape[1], -1))
        # As behind the window's end.
        return (found.masked_fill(frames < 0, 0.0),)

    def put_back(module: nn.Module, args: Any, output: Tensor) -> Any:
        """(batch, hidden, positions) of the window, zero where they are not kept."""
        if not now:
            return None
        width = output.shape[1]
        found = output.gather(2, now["places"].unsqueeze(1).expand(-1, width, -1))
        kept = now["kept"].transpose(1, 2).expand(-1, width, -1)
        return output.new_zeros(len(output), width, now["window"]).scatter(2, kept, found)

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
    convolutions[0].register_forward_pre_hook(cut)
    convolutions[1].register_forward_hook(put_back)
    encoder[0].register_forward_pre_hook(thin, with_kwargs=True)
    for layer in encoder:
        layer.register_forward_pre_hook(weigh("attention_mask", 1), with_kwargs=True)
    for layer in decoder:
        layer.register_forward_pre_hook(weigh("encoder_attention_mask", 3), with_kwargs=True)
