"""torch: what stops a process group that nobody may wait for, and a module without its hooks."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d


def abort_groups() -> None:
    """Stop all process groups without waiting for peers, whatever kernel they are in.

    Assumes that `_abort_process_group` aborts every group, NCCL's without waiting. Destroying one waits
    for what is under way, and that may wait for this rank, which has failed.

    Seen: torch 2.13 on gloo. On NCCL not tried.
    Else: the groups stay, and the process is ended with them some seconds later.
    Test: test_aborted_groups_are_gone
    """
    abort = getattr(distributed_c10d, "_abort_process_group", None)
    if abort is None:
        return
    try:
        abort()
    except RuntimeError:  # a backend that can't: it goes with the process
        if dist.is_initialized() and dist.get_backend() != "nccl":
            dist.destroy_process_group()


def forget_hooks(module: nn.Module) -> None:
    """Take all forward hooks off `module` and the modules in it, whoever put them there.

    Assumes that a module keeps them in `_forward_hooks` and `_forward_pre_hooks`.

    Seen: torch 2.13.
    Else: an AttributeError where a layer has no norm with a weight.
    Test: test_hooks_are_forgotten
    """
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
