"""Processes that read the batches of a rank ahead: how many, how they start, when they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Literal

import psutil
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from salsa_dist.data import last_read
from salsa_dist.errors import UserError
from salsa_dist.machine import cores, own_cores
from salsa_dist.placement.ranks import Ranks
from salsa_dist.speech_llms.family import Family
from salsa_dist.training.batches import StepBatches, StepShare

# In PyTorch's errors about shared memory; the other one is of systems that do not refuse it at first.
_FULL = ("No space left on device", "Bus error")
_LOOK_S = 1.0  # between looks of a worker whether its rank is there


def own_workers(wanted: int | Literal["auto"], ranks: Ranks) -> int:
    """Number of processes that read ahead for this rank.

    On a CPU they would take cores from the passes. One of 2, 3, 4 and 6 each reads pools of its own.
    """
    if wanted != "auto":
        return wanted
    if ranks.device.type == "cpu":
        return 0
    given, own = cores(), own_cores()
    # The ranks of a node were not given cores of their own, or share a container's quota.
    if own == os.cpu_count() or given < own:
        given //= ranks.local_world_size
    return next((n for n in (6, 4, 3, 2, 1) if n < given), 0)


@dataclass(frozen=True)
class _Asked:
    """A step to read, and what has changed of the batches since the workers were started."""

    step: int
    stopped: frozenset[int]
    micro_batch: int


class _Steps(Sampler[_Asked]):
    """The steps that are asked for next; the loader looks each time it begins anew."""

    def __init__(self) -> None:
        self.asked: Iterable[_Asked] = ()

    def __iter__(self) -> Iterator[_Asked]:
        return iter(self.asked)


class _Shares(Dataset[StepShare]):
    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def __getitem__(self, asked: _Asked) -> StepShare:
        self.batches.stop(asked.stopped)
        self.batches.limit_pass(asked.micro_batch)
        share = self.batches[asked.step]
        if get_worker_info() is not None:
            # Here, since an error goes to the rank. PyTorch would do it where an error is only printed,
            # and the rank would wait for ever.
            for batch in share.batches:
                batch.share_memory()
        return share


class ReadAhead:
    """The shares of a rank in order, read ahead by processes that live as long as this.

    Args:
        workers: how many processes; 0: this one reads.
        pinned: in memory from which a GPU copies without a wait.
    """

    def __init__(self, batches: StepBatches, workers: int, pinned: bool = False) -> None:
        # A fork of this process would copy the process group's threads in whatever state they are.
        # Workers are forked from a server that has imported once what each of them needs.
        context = multiprocessing.get_context("forkserver") if workers else None
        if context is not None:
            context.set_forkserver_preload(["__main__", __name__, *_modules_of(batches.family)])
        self._batches = batches
        self._steps = _Steps()
        self._processes: list[BaseProcess] = []
        self._loader = DataLoader(
            _Shares(batches),
            sampler=self._steps,
            batch_size=None,
            num_workers=workers,
            pin_memory=pinned,
            multiprocessing_context=context,
            prefetch_factor=2 if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=partial(_begin, os.getpid(), last_read.shared()) if workers else None,
        )

    def shares(self, first: int, end: int | None = None) -> Iterator[StepShare]:
        """Those of steps `first` to before `end`, None: the last. What an earlier call has read ahead
        is dropped; adapters that stopped and smaller passes count from here on."""
        own = self._batches
        steps = range(first, len(own) if end is None else end)
        stopped, most = own.stopped, own.limits.windows
        self._steps.asked = (_Asked(step, stopped, most) for step in steps)
        others = multiprocessing.active_children()
        shares = iter(self._loader)
        self._processes += [p for p in multiprocessing.active_children() if p not in others]
        return self._with_lost_workers_told(shares)

    def _with_lost_workers_told(self, shares: Iterator[StepShare]) -> Iterator[StepShare]:
        """The same shares.

        Raises:
            UserError: the workers could not hand theirs over, or one was killed.
        """
        try:
            yield from shares
        # A worker that is killed while it hands over closes a connection: EOFError or OSError.
        except (RuntimeError, OSError, EOFError) as error:
            text = str(error)
            if "shared memory" in text and any(sign in text for sign in _FULL):
                raise UserError(
                    "/dev/shm is full, through which data.workers hand over the clips that they read: "
                    "give it more room (Docker: --shm-size=8g), or set data.workers lower; with 0 it "
                    "is not used"
                ) from error
            # Any other end of a worker is a fault of ours or of a library, whose traceback is needed.
            killed = self._killed()
            if not killed:
                raise
            raise UserError(
                f"a process that reads clips ahead was killed (SIGKILL, process {', '.join(killed)}): "
                "mostly because memory ran out; set data.workers lower, or give the job more memory "
                "(Slurm: --mem); the same command resumes from the last checkpoint"
            ) from error

    def _killed(self) -> list[str]:
        """The process ids of workers that ended by SIGKILL."""
        if self._processes:
            wait([p.sentinel for p in self._processes], timeout=5)  # until the first end is known
        return [str(p.pid) for p in self._processes if p.exitcode == -signal.SIGKILL]


def _modules_of(family: Family) -> list[str]:
    """Where the classes of a family, of its processor and of that one's parts come from."""
    parts = [family, *vars(family).values()]
    parts += [own for part in parts if hasattr(part, "__dict__") for own in vars(part).values()]
    return sorted({type(part).__module__ for part in parts} - {"builtins"})


def _begin(rank: int, moment: last_read.Moment, worker: int) -> None:
    """In a new worker: note what it reads for its rank, and end with it."""
    last_read.note_in(moment)
    _end_with(rank)


def _end_with(rank: int) -> None:
    """End this worker when the process of its rank ends, however that ends.

    PyTorch's own watch looks at the parent: the fork server, which lives as long as its workers.
    """

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(rank)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="salsa-rank").start()
