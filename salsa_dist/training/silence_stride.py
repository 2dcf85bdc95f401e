"""How much of the trailing padding each adapter keeps in training (`training.silence_stride: auto`).

    first clips of an adapter ─► gradient of its vectors, whole window ─┐
                              └► the same, 1 in 2, 4, 8, 16 kept ───────┴► median cosine ─► stride

All positions at both ends of the padding are kept besides (`training.silence_ends_s`).
Measured before step 0, with the vectors as they begin, and kept in the state, so that a resumed run
goes on with the same strides. An adapter in a bank has that of a run of its own. Adapters that take the
same clips, and steer the same sites by the same rule from the same start, share a measurement, and
shard groups divide the clips. Medians are rounded: the last bits of a pass depend on the number of
threads, and strides should not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from salsa_dist.config import AdapterSettings
from salsa_dist.data.clip import Clip
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.speech_llms.family import Family
from salsa_dist.speech_llms.thin_silence import ThinsPadding
from salsa_dist.training.batches import StepBatches
from salsa_dist.training.dev_loss import DevClips
from salsa_dist.training.loss import token_losses

CLIPS = 8  # per adapter
STRIDES = (2, 4, 8, 16)
COSINE = 0.99  # the least median
DIGITS = 4

_NONE = -2.0  # of what is not measured: no cosine is as small


class SilenceStrides:
    """The stride of each adapter, and what is measured for it.

    Args:
        family: of the base, loaded with `silence_stride` auto.
        adapters: in row order.

    Attributes:
        by_row: stride per adapter; 1 until they are measured or restored.
    """

    def __init__(self, family: ThinsPadding, adapters: Sequence[AdapterSettings]) -> None:
        self._family = family
        self._adapters = list(adapters)
        self._strides = torch.ones(len(self._adapters), dtype=torch.int64)

    @property
    def by_row(self) -> list[int]:
        own: list[int] = self._strides.tolist()
        return own

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps, in place."""
        return {"silence_strides": self._strides}

    def apply(self, batches: StepBatches, dev: DevClips | None) -> None:
        """From now on batches are thinned so. One that two adapters thin differently is not shared."""
        self._family.silence_strides = tuple(self.by_row)
        alike = len(set(self.by_row)) == 1
        batches.share = batches.share and alike
        if dev is not None:
            dev.share = alike

    def measure(
        self, base: FrozenBase, batches: StepBatches, moved: Callable[[], None]
    ) -> dict[str, dict[int, float]]:
        """Take for each adapter the largest stride whose gradients are near enough, 1 where none is or
        where its clips fill the window. All ranks call this and take the same.

        Gradients are left in the bank.

        Args:
            moved: called before clips are read, and before each pass, as often on all ranks.

        Returns:
            Median cosine per stride, by adapter; none of an adapter whose clips fill the window.
        """
        draws, ranks = batches.draws(), base.ranks
        alike = [
            (draws[row], spec.sites, spec.rule, self._adapters[row].start_from)
            for row, spec in enumerate(base.bank.specs)
        ]
        rows = [alike.index(own) for own in dict.fromkeys(alike)]
        groups, group = ranks.world_size // base.size, ranks.rank // base.size
        found = torch.full(
            (len(rows) * CLIPS, len(STRIDES)), _NONE, dtype=torch.float64, device=ranks.device
        )
        read: dict[int, list[Clip]] = {}  # by draw, the last one
        for turn in range(math.ceil(len(found) / groups)):
            which = min(turn * groups + group, len(found) - 1)
            row, number = rows[which // CLIPS], which % CLIPS
            moved()
            if draws[row] not in read:
                read = {draws[row]: batches.first_clips(draws[row], CLIPS)}
            clips = read[draws[row]]
            padded = [clip for clip in clips if self._family.has_padding(clip)]
            any_left = torch.tensor(int(number < len(padded)), device=ranks.device)
            dist.all_reduce(any_left, op=dist.ReduceOp.MAX)
            if not any_left:
                continue
            # As many passes on every rank: DeepSpeed compares what ranks run.
            clip = padded[number] if number < len(padded) else clips[0]
            cosines = self._cosines(base, replace(clip, row=row), moved)
            if number < len(padded):
                found[which] = torch.tensor(cosines, dtype=torch.float64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        by_row = found.view(len(rows), CLIPS, len(STRIDES)).tolist()
        told = {}
        for row, key in enumerate(alike):
            measured = [own for own in by_row[rows.index(alike.index(key))] if own[0] != _NONE]
            if not measured:
                continue
            medians = [round(statistics.median(own), DIGITS) for own in zip(*measured, strict=True)]
            cosine_of = dict(zip(STRIDES, medians, strict=True))
            near = [stride for stride, cosine in cosine_of.items() if cosine >= COSINE]
            self._strides[row] = max(near, default=1)
            told[self._adapters[row].name] = cosine_of
        return told

    def _cosines(self, base: FrozenBase, clip: Clip, moved: Callable[[], None]) -> list[float]:
        """Per stride."""
        whole, *thinned = (self._gradient(base, clip, stride, moved) for stride in (1, *STRIDES))
        return [_cosine(whole, gradient) for gradient in thinned]

    def _gradient(self, base: FrozenBase, clip: Clip, stride: int, moved: Callable[[], None]) -> Tensor:
        """Of the vectors of the clip's adapter, for the clip alone in a pass."""
        moved()
        vectors, row = base.bank.vectors, clip.row
        for vector in vectors.values():
            vector.grad = None
        self._family.silence_strides = (stride,) * len(self._adapters)
        token_losses(base, base.family.training_batch([clip])).sum().backward()
        base.after_backward()
        own = [vectors[site].grad for site in base.bank.specs[row].sites]
        return torch.cat([g[row].flatten() for g in own if g is not None]).double()


def stride_of(family: Family, row: int) -> int:
    """1 in how many positions of the trailing padding the adapter of `row` was trained with."""
    if not isinstance(family, ThinsPadding):
        return 1
    own = family.silence_strides
    return own[row] if own else family.silence_stride


def ends_of(family: Family, row: int) -> float:
    """Seconds at each end of the trailing padding that were kept whole; 0 if nothing was thinned."""
    if not isinstance(family, ThinsPadding) or stride_of(family, row) == 1:
        return 0.0
    return family.silence_ends_s


def _cosine(whole: Tensor, thinned: Tensor) -> float:
    """0 where one of them is zero or not finite: such a clip speaks for no thinning."""
    cosine = (whole @ thinned / (whole.norm() * thinned.norm())).item()
    return cosine if math.isfinite(cosine) else 0.0
