"""Loading a shared base: each rank reads only its own partition of each weight.

    stored tensor   |··········|··········|··········|··········|
                     rank 0     rank 1     rank 2     rank 3        of a group that shares one copy

ZeRO-3 keeps elements [r*n, (r+1)*n) of a weight on rank r of k, n = ceil(elements / k), and in a
safetensors file these are one run of bytes. So nothing is sent while loading: no weight crosses a link
between nodes, and a group reads each byte of the checkpoint from storage once, however many nodes it is
on. Of several stored tensors that make one weight, such as experts, a run of each is read
(`speech_llms/sources.py`). Groups inside one node read the same files; the second finds them in the
node's page cache, and so do the ranks of `replicate`, which load the whole base by transformers' own
`from_pretrained`. A rank holds its own part and, beside it, its run of one weight.

What is no parameter (BatchNorm's statistics) is read whole by every rank: it is small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from salsa_dist.config import BaseConfig, PlacementConfig
from salsa_dist.placement.ranks import Ranks, group_size
from salsa_dist.placement.staging import fetched, staged
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.speech_llms.precision import warn_if_slow
from salsa_dist.speech_llms.sources import Source
from salsa_dist.speech_llms.unfilled import tensor_of

Say = Callable[[str], None]

_PERIOD_S = 5.0


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Part:
    """Which of `of` equal runs of a weight's elements a rank keeps."""

    index: int
    of: int

    def run(self, elements: int) -> tuple[int, int]:
        """First element, and the one after the last."""
        length = -(-elements // self.of)
        return min(self.index * length, elements), min((self.index + 1) * length, elements)


def load_base(
    base: BaseConfig,
    ranks: Ranks,
    placement: PlacementConfig,
    say: Say,
    silence_stride: int | Literal["auto"] = 1,
) -> SpeechLLM:
    """Load the base for `placement`: whole on this rank's device, or with its weights unread.

    Every rank calls this. With `base.stage_to`, the files are copied to this node's own disk first;
    those of a hub name are fetched by one rank of each node.

    Raises:
        UserError: the base can't be loaded or copied, or the ranks can't be divided as placed.
    """
    elsewhere = group_size(placement.kind, ranks) > 1 or placement.offload != "none"
    copy = staged(base, ranks, say) if base.stage_to is not None else fetched(base, ranks, say)
    warn_if_slow(base.dtype, ranks.device, "base.dtype: float32, in a new run folder,")
    say(f"loading base {base.name}")
    settings = base.model_dump(exclude={"stage_to"}) | {"silence_stride": silence_stride}
    if base.dtype == "auto":
        settings["dtype"] = None
    loaded = load_speech_llm(**settings, device=ranks.device, copy=copy, filled=not elsewhere)
    if loaded.why_whole is not None:
        say(f"each rank loads the whole base before it keeps its part: {loaded.why_whole}")
    return loaded


def fill(
    model: nn.Module,
    sources: Mapping[str, Source],
    part: Part,
    keep: Callable[[nn.Parameter], None],
    say: Say,
) -> None:
    """Read this rank's partition of every weight of a model on the meta device.

    Args:
        model: as `load_speech_llm(…, filled=False)` gives it.
        sources: where its weights lie.
        part: what this rank keeps of each parameter.
        keep: takes a parameter of its true shape, of whose elements only the part's are set, and frees
            the others.
        say: gets a line every few seconds.
    """
    stored = {id(tensor_of(model, name)): source for name, source in sources.items()}
    progress = _Progress(sum(source.bytes for source in stored.values()) // part.of, say)
    for tensor, places in _places(model):
        source = stored.get(id(tensor))
        if source is None:
            continue  # computed, such as rotary frequencies: it is there already
        if tensor.shape[1:] != source.shape[1:] or tensor.shape[:1] > source.shape[:1]:
            raise ValueError(f"{source} is no {tuple(tensor.shape)} and what follows")
        if isinstance(tensor, nn.Parameter):
            begin, end = part.run(tensor.numel())
            # Memory that nothing is written to is never taken: the rest of the weight costs none.
            whole = torch.empty(tensor.shape, dtype=tensor.dtype)
            whole.view(-1)[begin:end] = source.read(begin, end)
            filled: torch.Tensor = nn.Parameter(whole, requires_grad=False)
            progress.read((end - begin) * source.dtype.itemsize)
        else:
            filled = source.read(0, tensor.numel()).view(tensor.shape).to(tensor.dtype)
        for module, leaf in places:
            setattr(module, leaf, filled)
        if isinstance(filled, nn.Parameter):
            keep(filled)
    progress.end()


class _Progress:
    """A line every few seconds while weights are read, and one at the end."""

    def __init__(self, total: int, say: Say) -> None:
        self.total = total
        self.say = say
        self.done = 0
        self.started = self.said = time.monotonic()

    def read(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said >= _PERIOD_S:
            self.said = now
            speed = self.done / (now - self.started)
            left = max(0.0, self.total - self.done) / speed
            self.say(
                f"read {self.done / 1e9:.2f} of this rank's {self.total / 1e9:.2f} GB of the base "
                f"({self.done / self.total:.0%}), {speed / 1e9:.2f} GB/s, {left:.0f} s left"
            )

    def end(self) -> None:
        seconds = time.monotonic() - self.started
        self.say(f"base loaded: this rank read {self.done / 1e6:.1f} MB of it in {seconds:.1f} s")


def _places(model: nn.Module) -> list[tuple[torch.Tensor, list[tuple[nn.Module, str]]]]:
    """Every parameter and buffer once, with all places that it is in: tied ones have several."""
    found: dict[int, tuple[torch.Tensor, list[tuple[nn.Module, str]]]] = {}
    for module in model.modules():
        own: dict[str, Any] = {"recurse": False, "remove_duplicate": False}
        for leaf, tensor in [*module.named_parameters(**own), *module.named_buffers(**own)]:
            found.setdefault(id(tensor), (tensor, []))[1].append((module, leaf))
    return list(found.values())
