"""Selects the kernels that a job may use; reproducibility depends on them."""

from __future__ import annotations

import os

import torch


def settle_kernels(deterministic: bool) -> None:
    """Call it before CUDA is used.

    Args:
        deterministic: `training.deterministic`: kernels alone whose results do not depend on the order
            in which threads end.
    """
    # By default cuDNN rounds what an fp32 convolution multiplies to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    # cuBLAS promises it with this alone. PyTorch looks at it at the first product of the process and
    # never again, and a deterministic run may follow one that is not.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic:
        torch.backends.cudnn.benchmark = False
    # Saying it imports torch's compiler, some tenths of a second, even where it changes nothing.
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
