"""Finds a rank that hangs, says which and where, and ends this process so that the job comes back.

    RUN/ranks/rank-0003.json   {"schema": …, "rank": 3, "host": "n2", "pid": 4711, "beat": 12,
                                "place": 391, "step": 118 or null, "phase": "passes",
                                "ahead": "the sum over all ranks" or null,
                                "since_s": 0.4, "stack": […] or null}

It watches from the moment that the ranks have met to the end: comparing settings, choosing a placement,
staging, loading, each step. A thread in every rank rewrites its own file a few times in
`hang_after_s`. A rank moves with each phase, each pass and token within a phase, and each clip that it
or a process of its own reads, or tries again to read from a store. Only when it has not moved for that
long does it read the others': whose beat stands still is stopped, lost or unreachable. Where another
one is no further and still moves, it is waited for; else the rank ends with status `HUNG`; a launcher
ends the others and starts again. The stack is there once a rank stood for half of that time.

A GPU works long after its process asked it to. So a rank is where its GPU is, and the one that is late
is behind the others, although all processes wait in the same call (`ahead`).

Where even the thread can't run (a file system that hangs, a library that keeps the interpreter's
lock), a timer of faulthandler writes the stacks to the log and ends the process, after twice the time.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from salsa_dist import json_file
from salsa_dist.data import last_read
from salsa_dist.errors import UserError
from salsa_dist.run.failure_file import write_failure
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/rank/1"
HUNG = 75  # BSD's EX_TEMPFAIL: trying again may help
_FRAMES = 6  # of a stack, the innermost
_PACKAGE = str(Path(__file__).parents[1])
_NAMED = 16  # ranks, in one line
_STDERR = 2  # the descriptor: `sys.stderr` may be no file, as in a notebook
_READ_BYTES = 2**20  # so much read or written is a move; the files of this module are far smaller


class Event(Protocol):
    """What was asked of a device up to a moment; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether all of it is done; never waits."""


@dataclass(frozen=True)
class _Place:
    number: int  # phases passed so far
    step: int | None
    phase: str
    since: float
    reads: bool


class Watchdog:
    """Inside its block, the main thread says by `at` where it is, and a thread sees that it moves.

    Args:
        run: folder of the run, shared by all ranks.
        rank, world_size: who this is.
        hang_after_s: longest stay at one place, seconds.
        asked: makes an event of what was asked of this rank's device so far; None from it: all is done.
        in_thread: called first in the thread that looks at these events.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        world_size: int,
        hang_after_s: float,
        asked: Callable[[], Event | None] = lambda: None,
        in_thread: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = RunFolder(run).ranks
        self._rank, self._world_size = rank, world_size
        self._hang_after_s = hang_after_s
        self._main = threading.get_ident()
        self._asked, self._in_thread = asked, in_thread
        # Replaced whole, since the thread reads it: where the main thread is.
        self._place = self._reached = _Place(0, None, "starting", time.monotonic(), False)
        self._ahead: deque[tuple[_Place, Event | None]] = deque()  # where the device is not yet
        self._moved_at = self._device_moved = 0.0
        self._begun = False
        self._beat = 0
        self._read_at = (0.0, 0)  # when this process last moved by reading, and its bytes then
        # The run's folder, and those above it, that would be new.
        self._new = [folder for folder in (run, *run.parents) if not folder.exists()]
        self._end = threading.Event()
        self._writing = threading.Lock()  # both threads write
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.at(None, "starting")
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if kind is None or issubclass(kind, UserError):
            self._leave_nothing()

    def at(self, step: int | None, phase: str, *, reads: bool = False) -> None:
        """The main thread is now in `phase` of `step`; all ranks say the same, one after the other.

        Args:
            step: from 0, as in the file; None before the first one.
            phase: in words that follow 'is'.
            reads: it reads or copies gigabytes in one call: bytes that come in count as moving.
        """
        begins = step is not None and not self._begun
        if begins:
            self._begun = True
            # Not before a step: only then is it sure that no other job has the run's folder.
            if self._rank == 0:
                self._forget_others()
        if reads:
            self._read_at = (time.monotonic(), _bytes_moved())
        place = _Place(self._place.number + 1, step, phase, time.monotonic(), reads)
        self._ahead.append((place, self._asked()))
        self._place = place
        if begins:
            self._write()  # a rank that is stopped before its next beat is not to be taken for starting

    def moved(self) -> None:
        """The main thread has done a part of its phase, such as a pass. It stays at its place, which is
        compared between ranks: one that was out of memory makes more passes than others."""
        self._moved_at = time.monotonic()
        if (asked := self._asked()) is not None:
            self._ahead.append((self._place, asked))

    def whereabouts(self) -> str:
        """The ranks that are furthest behind, with their phase, from their files."""
        seen = self._others()
        furthest = min((_place_of(now) for now in seen), default=0)
        behind = [rank for rank, now in enumerate(seen) if _place_of(now) == furthest]
        return "; ".join(_where(rank, seen[rank]) for rank in behind[:_NAMED])

    def _watch(self) -> None:
        self._in_thread()
        # Seldom enough for thousands of ranks on one file system, often enough to see three beats.
        pause = min(10.0, self._hang_after_s / 5)
        self._write()  # at once: a rank that is never seen can't be said to be anywhere
        while not self._end.wait(pause):
            # Anew with each beat: it is for the case that there are no more of them.
            faulthandler.dump_traceback_later(2 * self._hang_after_s, exit=True, file=_STDERR)
            self._write()
            if self._stood_s() > self._hang_after_s:
                self._give_up(pause)

    def _forget_others(self) -> None:
        """Remove files of ranks that only an earlier start had."""
        for path in self._folder.glob("rank-*.json"):
            if int(path.stem.removeprefix("rank-")) >= self._world_size:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _stood_s(self) -> float:
        since = max(self._place.since, self._moved_at, self._device_moved, last_read.at())
        if self._place.reads:
            at, count = self._read_at
            now = _bytes_moved()
            if now - count > _READ_BYTES:
                at = time.monotonic()
                self._read_at = (at, now)
            since = max(since, at)
        return time.monotonic() - since

    def _follow(self) -> _Place:
        """Where the device is: behind its last event that is done, or where the main thread is."""
        with suppress(RuntimeError):  # a device that failed reports it at every call
            while self._ahead:
                place, asked = self._ahead[0]
                if asked is not None:
                    if not asked.query():
                        break
                    self._device_moved = time.monotonic()
                self._reached = place
                self._ahead.popleft()
        return self._reached

    def _write(self) -> None:
        with self._writing:
            self._beat += 1
            host, place = self._place, self._follow()
            stood_s = self._stood_s()
            fields = {
                "rank": self._rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "beat": self._beat,
                "place": place.number,
                "step": place.step,
                "phase": place.phase,
                "ahead": host.phase if host.number > place.number else None,
                "since_s": round(stood_s, 1),
                "stack": self._stack() if stood_s > self._hang_after_s / 2 else None,
            }
            with suppress(OSError):  # a full disk hangs nobody
                self._folder.mkdir(parents=True, exist_ok=True)
                # Replaced whole: ranks that wait for each other read at the moment that others write.
                json_file.write(self._file(self._rank), SCHEMA, fields, flushed=False)

    def _stack(self) -> list[str]:
        frame = sys._current_frames().get(self._main)
        frames = traceback.extract_stack(frame) if frame else []
        shown = frames[-_FRAMES:]
        # Deep inside torch it is not seen what it was called for: a line of ours goes along.
        own = [f for f in frames if f.filename.startswith(_PACKAGE)]
        if own and own[-1] not in shown:
            shown = [own[-1], *shown]
        return [f"{f.filename}:{f.lineno} {f.name}" for f in shown]

    def _give_up(self, pause: float) -> None:
        """Watch the other ranks for three heartbeats, report, and end this process."""
        before = self._others()
        for _ in range(3):
            if self._end.wait(pause) or self._stood_s() < self._hang_after_s:
                return  # it moved after all
            self._write()
        after = self._others()
        if waits_for_a_mover(self._rank, before, after, self._hang_after_s):
            return
        text = report(before, after, self._world_size, self._hang_after_s)
        write_failure(self._rank, text, user_error=False)
        print(f"error: {text}", file=sys.stderr)  # the main thread may hold the log's lock
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)

    def _leave_nothing(self) -> None:
        """No file of this rank, and no folder that holds nothing else."""
        with suppress(OSError):
            file = self._file(self._rank)
            mine = json_file.peek(file, SCHEMA)
            # A second job that is refused its folder leaves the first one's files alone.
            if (mine.get("pid"), mine.get("host")) == (os.getpid(), socket.gethostname()):
                file.unlink()
            self._folder.rmdir()
            for folder in dict.fromkeys([self._folder.parent, *self._new]):
                folder.rmdir()

    def _others(self) -> list[dict[str, Any]]:
        return [json_file.peek(self._file(rank), SCHEMA) for rank in range(self._world_size)]

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:04d}.json"


def silent_for(run: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """The last report of each rank of `run`, with its age in seconds."""
    for path in sorted(RunFolder(run).ranks.glob("rank-*.json")):
        with suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if found := json_file.peek(path, SCHEMA):
                yield found, age


def waits_for_a_mover(
    rank: int, before: list[dict[str, Any]], after: list[dict[str, Any]], hang_after_s: float
) -> bool:
    """Whether a rank that is no further than `rank` still moves, from all files three beats apart."""

    def moves(then: dict[str, Any], now: dict[str, Any]) -> bool:
        if not now:
            return bool(then)  # it has just ended, so `rank` may go on at any moment
        return (
            now.get("beat") != then.get("beat")
            and _place_of(now) <= _place_of(after[rank])
            and now.get("since_s", 0.0) < hang_after_s
        )

    pairs = zip(before, after, strict=True)
    return any(moves(then, now) for other, (then, now) in enumerate(pairs) if other != rank)


def report(
    before: list[dict[str, Any]], after: list[dict[str, Any]], world_size: int, hang_after_s: float
) -> str:
    """The ranks that hang, from two readings of every rank's file, three heartbeats apart.

    Ranks whose beat stands still are named first; where all beat, those furthest behind. These may be
    only slow, so the setting is named too.
    """
    silent = [
        rank
        for rank, (then, now) in enumerate(zip(before, after, strict=True))
        if not now or now.get("beat") == then.get("beat")
    ]
    head = f"no rank has moved for {hang_after_s:g} s; "
    if silent:
        lines = [_where(rank, after[rank]) + ", and gives no sign of life" for rank in silent]
        waiting = [rank for rank in range(world_size) if rank not in silent]
    else:
        head = f"all ranks live, but none has moved for {hang_after_s:g} s; "
        furthest = min((_place_of(now) for now in after), default=0)
        behind = [rank for rank in range(world_size) if _place_of(after[rank]) == furthest]
        lines = [_where(rank, after[rank]) for rank in behind]
        waiting = [rank for rank in range(world_size) if rank not in behind]
    lines = lines[:_NAMED]
    if waiting:
        names = ", ".join(map(str, waiting[:_NAMED])) + (" …" if len(waiting) > _NAMED else "")
        lines.append(f"waiting: rank {names}")
    if not silent:
        lines.append("if ranks are only slow here, raise training.hang_after_s")
    return head + "; ".join(lines)


def _where(rank: int, seen: dict[str, Any]) -> str:
    if not seen:
        return f"rank {rank} has no report: it never began, or it has ended"
    stack = seen.get("stack") or []
    own = [frame for frame in stack[:-1] if frame.startswith(_PACKAGE)]
    at = "".join(f" at {frame}" for frame in stack[-1:]) + "".join(f" from {f}" for f in own[-1:])
    when = "before the first step" if seen["step"] is None else f"in step {seen['step'] + 1}"
    ahead = f" on its GPU (its process: {seen['ahead']})" if seen.get("ahead") else ""
    return (
        f"rank {rank} (process {seen['pid']} on {seen['host']}) is {when}, {seen['phase']}{ahead}{at}"
    )


def _place_of(seen: dict[str, Any]) -> int:
    """The number of phases that a rank has passed; all ranks pass the same phases."""
    return int(seen.get("place", 0))


def _bytes_moved() -> int:
    """Bytes that this process has read and written so far; 0 where the system does not count them."""
    try:
        counted = psutil.Process().io_counters()
    except (AttributeError, psutil.Error, OSError):
        return 0
    # By calls, and by what storage gave: a file that is mapped into memory shows only in the latter.
    return int(counted.read_chars + counted.write_chars + counted.read_bytes + counted.write_bytes)
