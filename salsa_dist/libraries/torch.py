"""torch: process groups and their notes, the hooks of a module, where kernels are compiled."""

from __future__ import annotations

import os
import warnings

import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d


def abort_groups() -> None:
    """Stop all process groups without waiting for other ranks.

    Assumes that `_abort_process_group` aborts every group, with NCCL without waiting. Destroying a
    group would wait for its current operations, and those may wait for this rank, which has failed.

    Seen: torch 2.13 with gloo. Not tried with NCCL.
    Else: the groups stay, and some seconds later the process is ended.
    Test: test_aborted_groups_are_gone
    """
    abort = getattr(distributed_c10d, "_abort_process_group", None)
    if abort is None:
        return
    try:
        abort()
    except RuntimeError:  # the backend cannot abort: the group ends with the process
        if dist.is_initialized() and dist.get_backend() != "nccl":
            dist.destroy_process_group()


def quiet_barriers() -> None:
    """Hold back that a barrier takes the current GPU: each rank has set its own before.

    Assumes that the note begins with `barrier(): using the device under current context`.

    Seen: torch 2.13.
    Else: the first rank prints it at each place of a barrier.
    Test: test_a_barrier_says_nothing_of_its_device
    """
    warnings.filterwarnings(
        "ignore", r"barrier\(\): using the device under current context", UserWarning
    )


def forget_hooks(module: nn.Module) -> None:
    """Remove all forward hooks of `module` and of the modules in it.

    Assumes that they are in `_forward_hooks` and `_forward_pre_hooks`.

    Seen: torch 2.13.
    Else: an AttributeError, for a base with a layer without a weighted norm.
    Test: test_hooks_are_forgotten
    """
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()


def compile_in_this_process() -> None:
    """Have torch.compile start no processes, unless TORCHINDUCTOR_COMPILE_THREADS says how many.

    Assumes that `torch._inductor.config.compile_threads` counts them, and is looked at when the first
    kernel is compiled. The variable is read as that module is imported, which transformers does.

    Seen: torch 2.13.
    Else: kernels are compiled in processes that end by the signal ahead of a time limit, and training
        with them.
    Test: test_kernels_are_compiled_in_this_process
    """
    from torch._inductor import config

    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        config.compile_threads = 1
