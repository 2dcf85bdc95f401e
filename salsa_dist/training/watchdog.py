"""Finds a rank that hangs, says which and where, and ends this process so that the job comes back.

    RUN/ranks/rank-0003.json   {"schema": …, "rank": 3, "host": "n2", "pid": 4711, "beat": 12,
                                "step": 118, "phase": "passes", "since_s": 0.4, "stack": […] or null}

A thread in every rank rewrites its own file a few times in `hang_after_s`. Only when its rank itself
has not moved for that long does it read the others': whose beat stands still is stopped, lost or
unreachable. The rank then ends with status `HUNG`; a launcher ends the others and starts again. The
stack is there once a rank stood for half of that time.

Where even the thread can't run (a file system that hangs, a library that keeps the interpreter's
lock), a timer of faulthandler writes the stacks to the log and ends the process, after twice the time.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from salsa_dist.failure_file import write_failure

SCHEMA = "salsa-dist/rank/1"
FOLDER = "ranks"
HUNG = 75  # BSD's EX_TEMPFAIL: trying again may help
_FRAMES = 6  # of a stack, the innermost


class Watchdog:
    """Inside its block, the main thread says by `at` where it is, and a thread sees that it moves.

    Args:
        run: folder of the run, shared by all ranks.
        rank, world_size: who this is.
        hang_after_s: longest stay at one place, seconds.
    """

    def __init__(self, run: Path, rank: int, world_size: int, hang_after_s: float) -> None:
        self._folder = run / FOLDER
        self._rank, self._world_size = rank, world_size
        self._hang_after_s = hang_after_s
        self._main = threading.get_ident()
        self._place = (0, "start", time.monotonic())  # replaced whole: read by the thread
        self._beat = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._place = (*self._place[:2], time.monotonic())
        if self._rank == 0:
            self._forget_others()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: object, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if kind is None:
            with suppress(OSError):
                self._file(self._rank).unlink(missing_ok=True)

    def at(self, step: int, phase: str) -> None:
        """The main thread is now in `phase` of `step`."""
        self._place = (step, phase, time.monotonic())

    def _watch(self) -> None:
        # Seldom enough for thousands of ranks on one file system, often enough to see three beats.
        pause = min(10.0, self._hang_after_s / 5)
        place = None
        self._write()  # at once: a rank that is never seen can't be said to be anywhere
        while not self._end.wait(pause):
            self._write()
            if self._place != place:
                place = self._place
                faulthandler.dump_traceback_later(2 * self._hang_after_s, exit=True)
            if self._stood_s() > self._hang_after_s:
                self._give_up(pause)

    def _forget_others(self) -> None:
        """Remove what ranks left that this start has not: it may have fewer than the one before."""
        for path in self._folder.glob("rank-*.json"):
            if int(path.stem.removeprefix("rank-")) >= self._world_size:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _stood_s(self) -> float:
        return time.monotonic() - self._place[2]

    def _write(self) -> None:
        self._beat += 1
        step, phase, _ = self._place
        stood_s = self._stood_s()
        fields = {
            "schema": SCHEMA,
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "beat": self._beat,
            "step": step,
            "phase": phase,
            "since_s": round(stood_s, 1),
            "stack": self._stack() if stood_s > self._hang_after_s / 2 else None,
        }
        with suppress(OSError):  # a full disk hangs nobody
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(self._rank).write_text(json.dumps(fields), encoding="utf-8")

    def _stack(self) -> list[str]:
        frame = sys._current_frames().get(self._main)
        frames = traceback.extract_stack(frame)[-_FRAMES:] if frame else []
        return [f"{f.filename}:{f.lineno} {f.name}" for f in frames]

    def _give_up(self, pause: float) -> None:
        """Look at the others for three beats, say what was found, end this process."""
        before = self._others()
        for _ in range(3):
            if self._end.wait(pause) or self._stood_s() < self._hang_after_s:
                return  # it moved after all
            self._write()
        text = report(before, self._others(), self._world_size, self._hang_after_s)
        write_failure(self._rank, text, user_error=False)
        print(f"error: {text}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)

    def _others(self) -> list[dict[str, Any]]:
        return [_read(self._file(rank)) for rank in range(self._world_size)]

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:04d}.json"


def report(
    before: list[dict[str, Any]], after: list[dict[str, Any]], world_size: int, hang_after_s: float
) -> str:
    """Who hangs, from every rank's file now and three beats ago.

    Ranks whose beat stands still are named first; where all beat, those furthest behind.
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
        furthest = min((now.get("step", 0) for now in after), default=0)
        behind = [r for r in range(world_size) if after[r].get("step", 0) == furthest]
        lines = [_where(rank, after[rank]) for rank in behind]
        waiting = [rank for rank in range(world_size) if rank not in behind]
    if waiting:
        names = ", ".join(map(str, waiting[:16])) + (" …" if len(waiting) > 16 else "")
        lines.append(f"waiting: rank {names}")
    return head + "; ".join(lines[:16])


def _where(rank: int, seen: dict[str, Any]) -> str:
    if not seen:
        return f"rank {rank} was never seen"
    stack = seen.get("stack")
    at = f" at {stack[-1]}" if stack else ""
    return (
        f"rank {rank} (process {seen['pid']} on {seen['host']}) is in step {seen['step']}, "
        f"{seen['phase']}{at}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if found.get("schema") == SCHEMA else {}
