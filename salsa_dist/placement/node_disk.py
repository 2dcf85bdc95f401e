"""Files that one rank per node writes to the node's own disk, for all ranks of the node.

    first rank of a node    copies ─► progress, then the outcome ─┐
    any other rank          "" ───────────────────────────────────┴► store ─► read by all ranks

Copies of terabytes take longer than any collective waits, so ranks wait for keys in the store of their
group. A rank that fails meanwhile ends them (`peers.py`), and the watchdog where all stand still.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks

Told = Callable[[int, int], None]  # bytes that are copied, of how many

_LOOK = timedelta(seconds=5)
_SAID_EVERY_S = 30.0
_calls = itertools.count()  # all ranks call equally often


def once_a_node(
    ranks: Ranks, problem: str, make: Callable[[Told], Path], say: Callable[[str], None]
) -> Path:
    """The result of `make` on the first rank of this node. Every rank calls this; the others wait.

    Args:
        ranks: this process.
        problem: begins the line about a disk that can't be written to.
        make: copies, tells how far it is, and names the folder.
        say: gets a line now and then, on the rank that waits for others.

    Raises:
        UserError: on all ranks, where `make` failed on any node.
    """
    store, call = ranks.store, next(_calls)
    outcome = ["", ""]
    if ranks.local_rank == 0:

        def told(done: int, of: int) -> None:
            if store is not None:
                store.set(f"copy-{call}-progress-{ranks.rank}", json.dumps([done, of]))

        try:
            outcome[0] = str(make(told))
        except UserError as e:
            outcome[1] = str(e)
        except OSError as e:
            outcome[1] = f"{problem}: {e.strerror or e}"
    if store is None:
        outcomes = [outcome]
    else:
        store.set(f"copy-{call}-{ranks.rank}", json.dumps(outcome))
        outcomes = _all_outcomes(store, call, ranks, say)
    for _, failure in outcomes:
        if failure:
            raise UserError(failure)
    return Path(outcomes[ranks.rank - ranks.local_rank][0])


def _all_outcomes(
    store: dist.Store, call: int, ranks: Ranks, say: Callable[[str], None]
) -> list[list[str]]:
    """The outcome of every node's copy, waited for without a limit."""
    keys = [f"copy-{call}-{rank}" for rank in range(ranks.world_size)]
    said = time.monotonic()
    while True:
        try:
            store.wait(keys, _LOOK)
            return [json.loads(outcome) for outcome in store.multi_get(keys)]
        except dist.DistStoreError:
            if time.monotonic() - said >= _SAID_EVERY_S:
                said = time.monotonic()
                say(_waiting(store, call, keys))


def _waiting(store: dist.Store, call: int, keys: list[str]) -> str:
    """Whose copies are not done, and how far they are."""
    copying = [rank for rank, key in enumerate(keys) if not store.check([key])]
    far = []
    for rank in copying[:4]:
        key = f"copy-{call}-progress-{rank}"
        done, of = json.loads(store.get(key)) if store.check([key]) else (0, 0)
        far.append(f"rank {rank} at {done / 1e9:.1f} of {of / 1e9:.1f} GB")
    more = f" and {len(copying) - 4} more" if len(copying) > 4 else ""
    return f"waiting for the copies of {len(copying)} nodes: {', '.join(far)}{more}"


def node_folder(setting: str, text: str) -> Path:
    """`text` with its environment variables put in.

    Raises:
        UserError: one of them is not set; names the `setting`.
    """
    expanded = os.path.expandvars(os.path.expanduser(text))
    if "$" in expanded:
        raise UserError(f"{setting} is {text}, and that variable is not set on this node")
    return Path(expanded)
