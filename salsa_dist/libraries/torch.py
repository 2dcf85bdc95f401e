"""torch.distributed: what stops a process group that nobody may wait for."""

from __future__ import annotations

import torch.distributed as dist
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
