"""A device whose memory is full, as one line that names the settings to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from salsa_dist.errors import UserError

IN_TRAINING = (
    "set training.micro_batch and evaluation.batch lower, set training.activation_checkpointing true, "
    "or share the base among more ranks (placement.kind)"
)
IN_EVALUATION = (
    "set evaluation.batch lower, or share the base among more ranks (evaluation.placement.kind)"
)
IN_LOADING = "take a GPU with more memory, or a smaller base or dtype"
IN_TRANSCRIBING = (
    "take fewer pieces in a pass (--batch), a GPU with more memory (--device), or --dtype bfloat16"
)


# What NVIDIA's libraries say where torch's allocator has taken all: the thread of the first backward
# pass opens cuBLAS for itself.
_FULL = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def is_full_memory(error: RuntimeError) -> bool:
    """Whether `error` says that a device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _FULL)


@contextmanager
def full_memory_in_one_line(place: Callable[[], str], advice: str) -> Iterator[None]:
    """Inside the block, memory that runs out is an error of the user's.

    Args:
        place: says what was done, when it happens.
        advice: what to change.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_full_memory(error):
            raise
        raise UserError(f"{place()}: out of memory: {advice}") from error
