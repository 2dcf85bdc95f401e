"""The lock of a run's folder: one job at a time.

    RUN/lock.json    {"schema": …, "token": random, "beat": 12, "host": "n1", "pid": 4711,
                      "namespace": of that pid, "job": Slurm's job id or null,
                      "restart": how often that job was requeued}

The file is made exclusively and its beat rises every `BEAT_S`, so it says on any shared file system
whether its owner lives; clocks of different hosts are never compared. The lock is free to take where
its owner is seen dead (same host), is this very job before it was requeued, or whose beat stands still
for `SILENT_S`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks
from salsa_dist.run.folder import RunFolder
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/lock/1"
BEAT_S = 5.0
SILENT_S = 30.0
_SETTLE_S = 1.0  # two that take a silent lock at once: the one whose text stays has it


class RunLock:
    """The lock while it is held; see `held`."""

    def __init__(self, run: Path) -> None:
        self._path = RunFolder(run).lock
        self._mine: dict[str, Any] = {
            "schema": SCHEMA,
            "token": secrets.token_hex(8),
            "beat": 0,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "namespace": _process_namespace(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        }
        self._end = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def check(self) -> None:
        """Raises: UserError: another job took the lock, because this one did not rewrite it."""
        found = _read(self._path)
        if found.get("token") != self._mine["token"]:
            raise UserError(
                f"run folder {self._path.parent} was taken over by {_owner(found)} while this job was "
                "suspended: that job continues the run, this one writes nothing more"
            )

    def _take(self) -> None:
        while not self._make():
            theirs = _read(self._path)
            if not (_was_requeued(theirs, self._mine) or _is_dead(theirs, self._mine)):
                theirs = self._wait_for_silence(theirs)
            if _read(self._path) != theirs:
                continue  # somebody else was quicker
            self._replace()
            time.sleep(_SETTLE_S)
            found = _read(self._path)
            if found.get("token") == self._mine["token"]:
                break
            raise _refusal(self._path, found)
        self._beats.start()

    def _make(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except OSError as e:
            raise _unwritable(self._path.parent, e) from e
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._mine, file)
        except OSError as e:
            self._path.unlink(missing_ok=True)
            raise _unwritable(self._path.parent, e) from e
        return True

    def _wait_for_silence(self, theirs: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + SILENT_S
        while time.monotonic() < until:
            time.sleep(BEAT_S / 5)
            found = _read(self._path)
            if found != theirs and found:
                raise _refusal(self._path, found)
            if not self._path.exists():
                break
        return theirs

    def _replace(self) -> None:
        replace_file(self._path, json.dumps(self._mine), writer=self._mine["token"])

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            # A full disk must not end the run by its lock: the next beat may have room.
            with suppress(OSError):
                if _read(self._path).get("token") != self._mine["token"]:
                    return
                self._mine["beat"] += 1
                self._replace()

    def _release(self) -> None:
        self._end.set()
        if self._beats.is_alive():
            self._beats.join()
        with suppress(OSError):
            if _read(self._path).get("token") == self._mine["token"]:
                self._path.unlink()


@contextmanager
def held(run: Path) -> Iterator[RunLock]:
    """Hold the lock of run folder `run`, which is made where it is missing.

    At the end the lock is gone, and the folder too if it was made here and nothing was put in it.

    Raises:
        UserError: another job is at work there, or the folder can't be written.
    """
    made: list[Path] = []
    for folder in [*reversed(run.absolute().parents), run.absolute()]:
        try:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
        except OSError as e:
            raise _unwritable(run, e) from e
    lock = RunLock(run)
    try:
        lock._take()
        yield lock
    finally:
        lock._release()
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def held_for_all(run: Path, ranks: Ranks) -> Iterator[RunLock | None]:
    """The first rank holds the lock of `run` for the job, the others get None.

    Whatever writes into a run's folder holds it: training, baselines, evaluation.

    Raises:
        UserError: on all ranks alike, where the first is refused.
    """
    refused: list[str | None] = [None]
    with ExitStack() as stack:
        lock = None
        if ranks.is_first:
            try:
                lock = stack.enter_context(held(run))
            except UserError as e:
                refused = [str(e)]
        dist.broadcast_object_list(refused, src=0)
        if refused[0] is not None:
            raise UserError(refused[0])
        yield lock


def _read(path: Path) -> dict[str, Any]:
    """The content of the lock; empty if it does not exist or cannot be read now."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _was_requeued(theirs: dict[str, Any], mine: dict[str, Any]) -> bool:
    if mine["job"] is None or theirs.get("job") != mine["job"]:
        return False
    return bool(theirs.get("restart", 0) < mine["restart"])


def _is_dead(theirs: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether the owner ran where its process id means something here, and is gone."""
    if any(theirs.get(key) != mine[key] for key in ("host", "namespace")):
        return False
    try:
        os.kill(int(theirs["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        return False
    return False


def _process_namespace() -> str | None:
    """Process ids of two containers on a host mean different things."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None  # no Linux


def _unwritable(run: Path, error: OSError) -> UserError:
    return UserError(f"run folder {run} can't be written: {error.strerror}")


def _owner(lock: dict[str, Any]) -> str:
    job = f"job {lock['job']}, " if lock.get("job") else ""
    return f"another job ({job}process {lock.get('pid')} on {lock.get('host')})"


def _refusal(path: Path, found: dict[str, Any]) -> UserError:
    return UserError(
        f"run folder {path.parent} is in use by {_owner(found)}: wait for it or cancel it, or name "
        f"another run folder ({path} says so)"
    )
