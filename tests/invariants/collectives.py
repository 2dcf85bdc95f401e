"""Every collective of this process, seen where all of torch.distributed and DeepSpeed must pass.

    with collectives() as seen:
        ...
    seen   [Collective("all_gather_single", (0, 1), 4096), …]

It wraps the methods of torch's own ProcessGroup class, below every Python function that calls them, so
no gather can go by another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_MOVE_TENSORS = (
    *("allgather", "_allgather_base", "all_gather_single", "all_gather_single_coalesced"),
    *("allgather_coalesced", "allgather_into_tensor_coalesced", "broadcast", "gather", "scatter"),
    *("allreduce", "allreduce_coalesced", "reduce", "reduce_scatter", "_reduce_scatter_base"),
    *("reduce_scatter_single", "reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced"),
    *("alltoall", "alltoall_base", "all_to_all_single", "send", "recv"),
)


@dataclass(frozen=True)
class Collective:
    """One call: its method, the global ranks of its group, the bytes of what it fills."""

    kind: str
    ranks: tuple[int, ...]
    bytes: int


@contextmanager
def collectives() -> Iterator[list[Collective]]:
    """Note the collectives that this process takes part in."""
    seen: list[Collective] = []
    # From the class's dictionary: `getattr` would unwrap the descriptors that make them methods.
    kept = {name: vars(dist.ProcessGroup)[name] for name in _MOVE_TENSORS}

    def noted(name: str) -> Any:
        method = getattr(dist.ProcessGroup, name)

        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            size = sum(t.numel() * t.element_size() for t in _tensors(args[0]))
            seen.append(Collective(name, tuple(dist.get_process_group_ranks(group)), size))
            return method(group, *args, **kwargs)

        return call

    for name in kept:
        setattr(dist.ProcessGroup, name, noted(name))
    try:
        yield seen
    finally:
        for name, method in kept.items():
            setattr(dist.ProcessGroup, name, method)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
