"""Recordings shared out to the ranks that a launcher started: `salsa-dist launch transcribe`, torchrun.

    first rank  ── the files that were named ──► every rank ── one recording in WORLD_SIZE ──► results
    every rank  ── what failed ──► the first one, which says it and ends with status 2

Each rank has a whole base; no result depends on how many ranks there are. Without a launcher this
process does all, and joins nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks, join
from salsa_dist.run.failing import failure_first
from salsa_dist.transcription.inputs import Input

T = TypeVar("T")
# A rank may have much longer recordings than another; one that fails ends the others (`peers.py`).
_FOR_OTHERS = timedelta(days=7)


@dataclass(frozen=True)
class Share:
    """This process's share of a transcription; `ranks` is None if there is one process."""

    ranks: Ranks | None = None

    @property
    def count(self) -> int:
        return self.ranks.world_size if self.ranks else 1

    @property
    def device(self) -> str | None:
        """This rank's device; None: the user's choice."""
        return str(self.ranks.device) if self.ranks else None

    @property
    def is_first(self) -> bool:
        return self.ranks is None or self.ranks.is_first

    def has(self, number: int) -> bool:
        """Whether this process transcribes recording `number` of all."""
        return self.ranks is None or number % self.ranks.world_size == self.ranks.rank

    def files(self, find: Callable[[], Sequence[Input]]) -> list[Input]:
        """The result of `find` on rank 0, which has the standard input.

        Raises:
            UserError: `find` raised it; on every rank.
        """
        found = self._of_first("files", lambda: [asdict(one) for one in find()])
        return [Input(**fields) for fields in found]

    def after_first(self, do: Callable[[], T]) -> T:
        """Run `do` on rank 0, then on the other ranks, which find its files on disk."""
        done: list[T] = []
        self._of_first("done", lambda: done.append(do()))
        return done[0] if done else do()

    def _of_first(self, key: str, do: Callable[[], Any]) -> Any:
        """The result of `do` on rank 0, sent as JSON; its UserError is raised on every rank."""
        if self.ranks is None or self.ranks.store is None:
            return do()
        if self.ranks.is_first:
            try:
                given = do()
            except UserError as error:
                self.ranks.store.set(key, json.dumps({"wrong": str(error)}))
                raise
            self.ranks.store.set(key, json.dumps({"given": given}))
            return given
        told = json.loads(self.ranks.store.get(key))
        if "wrong" in told:
            raise UserError(told["wrong"])
        return told["given"]

    def of_all(self, failed: Sequence[str], done: int) -> tuple[list[str], int]:
        """The errors of all ranks and how many recordings they did, once each is ready."""
        if self.ranks is None or self.ranks.store is None:
            return list(failed), done
        keys = [f"transcribed-{rank}" for rank in range(self.ranks.world_size)]
        self.ranks.store.set(keys[self.ranks.rank], json.dumps([list(failed), done]))
        self.ranks.store.wait(keys, _FOR_OTHERS)
        told = [json.loads(self.ranks.store.get(key)) for key in keys]
        return [error for errors, _ in told for error in errors], sum(count for _, count in told)


@contextmanager
def shared_out(device: str | None) -> Iterator[Share]:
    """This process's share.

    Args:
        device: `--device`; ranks take cpu, cuda or None, since each has a GPU of its own.

    Raises:
        UserError: the ranks' devices do not fit together, or one GPU is named for several ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share()
        return
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device} is one GPU for all ranks: omit it, each rank takes its own")
    with join(wanted=device or "auto") as ranks, failure_first(ranks):
        yield Share(ranks)
