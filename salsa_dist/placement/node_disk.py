"""What one rank of each node puts on the node's own disk, for all ranks of the node."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks


def once_a_node(ranks: Ranks, problem: str, make: Callable[[], Path]) -> Path:
    """What `make` gives on the first rank of this node. Every rank calls this; the others wait.

    Args:
        ranks: this process.
        problem: begins the line about a disk that can't be written to.
        make: copies, and names the folder.

    Raises:
        UserError: on all ranks, where `make` failed on any node.
    """
    target, failed = "", ""
    if ranks.local_rank == 0:
        try:
            target = str(make())
        except UserError as e:
            failed = str(e)
        except OSError as e:
            failed = f"{problem}: {e.strerror or e}"
    outcomes: list[tuple[str, str]] = [("", "")] * ranks.world_size
    dist.all_gather_object(outcomes, (target, failed))
    for _, failure in outcomes:
        if failure:
            raise UserError(failure)
    return Path(outcomes[ranks.rank - ranks.local_rank][0])


def node_folder(setting: str, text: str) -> Path:
    """`text` with its environment variables put in.

    Raises:
        UserError: one of them is not set; names the `setting`.
    """
    expanded = os.path.expandvars(os.path.expanduser(text))
    if "$" in expanded:
        raise UserError(f"{setting} is {text}, and that variable is not set on this node")
    return Path(expanded)
