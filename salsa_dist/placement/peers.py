"""Ends this process soon after it, or another rank of the node, has failed, even during a collective.

    rank 1   raises ─► its failure file ─► store: "failed" ─► its groups aborted ─► ends
    rank 0   in a collective …             a thread sees it within a second ──────► ends

A collective that a rank never joins has no end of its own on NCCL; without this, one rank that is out
of memory would be told minutes later as a hang of all others.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

FAILED = 1
USER_ERROR = 2
_PERIOD_S = 1.0
# Peers that raise by themselves, as on gloo, or for the same mistake of the user's, say more.
_GRACE_S = 3.0
_GRACE_USER_ERROR_S = 20.0
_OWN_END_S = 4.0
_KEY = "failed"


class Peers:
    """Inside its block a thread looks for a rank that has failed.

    Args:
        store: of this process group, shared by all ranks.
        rank: who this is.
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        # One connection serves one call, and the main thread's may wait.
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]  # its stub lacks it
        self._rank = rank
        self._end = threading.Event()
        self._own_status = 0
        self._thread = threading.Thread(target=self._look, name="peers", daemon=True)

    def __enter__(self) -> Peers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._own_status and self._rank == 0:
            time.sleep(1.5 * _PERIOD_S)  # mostly it has the store: the others are to see why it goes
        self._end.set()
        self._thread.join(_GRACE_S)  # it may wait for a store that is gone

    def tell(self, text: str, user_error: bool) -> None:
        """This rank has failed: the others end, and so does this one, all within seconds."""
        self._own_status = USER_ERROR if user_error else FAILED
        said = {"rank": self._rank, "user_error": user_error, "text": text}
        # By a thread: the store may be of a rank that is gone.
        thread = threading.Thread(target=self._say, args=(json.dumps(said),), daemon=True)
        thread.start()
        thread.join(_PERIOD_S)

    def _say(self, text: str) -> None:
        try:
            # The first word counts; what others raise then is mostly that this one is gone.
            self._store.compare_set(_KEY, "", text)
        except dist.DistError:
            return

    def _look(self) -> None:
        while not self._end.wait(_PERIOD_S):
            if self._own_status:
                self._end_unless_ended(_OWN_END_S, self._own_status)
                continue
            try:
                said = json.loads(self._store.get(_KEY)) if self._store.check([_KEY]) else None
            except (dist.DistError, ValueError):
                continue  # the store is gone, so this process is about to see it too
            if said is not None:
                self._follow(said)

    def _follow(self, said: dict[str, Any]) -> None:
        grace = _GRACE_USER_ERROR_S if said["user_error"] else _GRACE_S
        text = f"rank {said['rank']} failed, and rank {self._rank} with it: {said['text']}"
        self._end_unless_ended(grace, USER_ERROR if said["user_error"] else FAILED, text)

    def _end_unless_ended(self, grace_s: float, status: int, text: str = "") -> None:
        if self._end.wait(grace_s):
            return
        if text and not self._own_status:
            print(f"error: {text}", file=sys.stderr)  # the main thread may hold the log's lock
        sys.stderr.flush()
        os._exit(status)
