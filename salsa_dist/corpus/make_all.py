"""Makes all shards of a build, in several processes. Existing shards are kept."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from salsa_dist.corpus.make_tar import Made, Task, kept, make
from salsa_dist.errors import UserError
from salsa_dist.log import log


def make_all(tasks: Sequence[Task], folder: Path, workers: int) -> dict[str, Made]:
    """The result of each task, by its path."""
    _remove_others(tasks, folder)
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    made = {task.path: found for task in tasks if (found := kept(task, folder))}
    left = [task for task in tasks if task.path not in made]
    if made:
        log.info(f"resuming: {len(made)} of {len(tasks)} shards are there")
    quiet = not log.isEnabledFor(logging.INFO)
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("shards", total=len(tasks), completed=len(made))
        for path, done in _made(left, folder, workers):
            made[path] = done
            progress.advance(bar)
    return made


def _made(tasks: Sequence[Task], folder: Path, workers: int) -> Iterator[tuple[str, Made]]:
    workers = min(workers, len(tasks))
    if workers <= 1:
        for only in tasks:
            yield only.path, make(only, folder)
        return
    # spawn: a fork of a process in which torch has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_worker) as pool:
        left = iter(tasks)
        running: dict[Future[Made], str] = {}
        try:
            while True:
                # A few tasks ahead, not all: each carries its utterances.
                while len(running) < 2 * workers and (task := next(left, None)):
                    running[pool.submit(make, task, folder)] = task.path
                if not running:
                    return
                done = next(as_completed(running))
                yield running.pop(done), done.result()
        except BrokenProcessPool as e:
            raise UserError(
                f"a process that made shards in {folder} was killed (out of memory?): run the "
                "build again, with fewer --workers; it resumes"
            ) from e
        finally:
            pool.shutdown(cancel_futures=True)


def _worker() -> None:
    """A build's Ctrl-C is handled by its first process, and no other outlives that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _remove_others(tasks: Sequence[Task], folder: Path) -> None:
    """Remove files of another corpus, or of a process that was killed while writing."""
    ours = {folder / task.path for task in tasks}
    ours |= {path.with_name(path.name + ".json") for path in ours}
    for path in folder.rglob("*"):
        if not path.is_dir() and path not in ours:
            path.unlink()
