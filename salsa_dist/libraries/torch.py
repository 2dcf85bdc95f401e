"""torch: aborting process groups, and removing the hooks of a module."""

from __future__ import annotations

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
