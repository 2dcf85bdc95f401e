"""Copies batches to a GPU: the next batch is copied while the current one is computed.

    compute   │ batch 1 ──────────────│ batch 2 ──────────────│ …
    copy      │ batch 2 ──│           │ batch 3 ──│             the first of the next step too

The data loader pins its batches, so the copy is asynchronous. On the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.training.batches import StepShare


class CopiesAhead:
    """Copies of batches on `device`, floating-point inputs in the base's `dtype`."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._source: AdapterBatch | None = None  # the batch that is being copied
        self._copy: AdapterBatch | None = None
        self.works = device.type != "cpu"
        if self.works:
            self._streams = torch.get_device_module(device)
            self._side = self._streams.Stream(device)

    def on_device(self, batch: AdapterBatch, following: AdapterBatch | None) -> AdapterBatch:
        """`batch` on the device. The copy of `following` starts and is not waited for."""
        if not self.works:
            return batch
        if self._source is not batch:
            self._begin(batch)
        now = self._copy
        assert now is not None
        main = self._streams.current_stream(self.device)
        main.wait_stream(self._side)
        # The side stream owns this memory and must not reuse it before `main` has finished with it.
        for tensor in now.tensors():
            tensor.record_stream(main)
        self.forget()
        if following is not None:
            self._begin(following)
        return now

    def forget(self) -> None:
        """Drop the copy that was started."""
        self._source = self._copy = None

    def _begin(self, batch: AdapterBatch) -> None:
        with self._streams.stream(self._side):
            self._source, self._copy = batch, batch.to(self.device, self.dtype)


def with_next(
    shares: Iterable[StepShare], ahead: bool
) -> Iterator[tuple[StepShare, AdapterBatch | None]]:
    """Each share with the first batch of the next one. Without `ahead`, no share is requested early."""
    found = iter(shares)
    if not ahead:
        yield from ((share, None) for share in found)
        return
    share = next(found, None)
    while share is not None:
        following = next(found, None)
        yield share, following.batches[0] if following is not None else None
        share = following
