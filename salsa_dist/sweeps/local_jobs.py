"""Runs a sweep's jobs on this machine, several at a time, each in its own processes.

    jobs in order ──► at most `at_once` threads, each: train, then evaluate, in processes of their own
                      with GPUs of its own, where there are any

A job that fails does not end the sweep: the others run, and what failed is told at the end. A signal
goes on to the jobs, which save their states; the same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from types import FrameType

from salsa_dist.errors import UserError
from salsa_dist.log import log
from salsa_dist.machine import cores
from salsa_dist.run.folder import RunFolder
from salsa_dist.sweeps.folder import JobFolder


def run_jobs(jobs: Sequence[JobFolder], ranks: int, at_once: int = 1) -> int:
    """Run the unfinished `jobs`, on so many ranks. Returns 0, or 128 plus the signal that stopped them.

    Raises:
        UserError: jobs that failed, once all have been tried.
    """
    places: Queue[dict[str, str]] = Queue()
    for place in _places(ranks, at_once):
        places.put(place)
    stopped: list[int] = []
    running: set[subprocess.Popen[bytes]] = set()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        for process in list(running):
            process.send_signal(signal.SIGTERM)

    def run(number: int, job: JobFolder) -> Path | None:
        """The job's folder if it failed."""
        if stopped:
            return None
        log.info(f"job {number}/{len(jobs)}: {job.path.name}, {len(job.adapters)} adapters")
        place = places.get()
        try:
            return do(job, place)
        finally:
            places.put(place)

    def do(job: JobFolder, place: dict[str, str]) -> Path | None:
        for verb in job.to_do():
            # A session of its own: Ctrl-C reaches this process alone, and the job once, from here.
            process = subprocess.Popen(
                _command(verb, job, ranks),
                start_new_session=True,
                env={**_environment(at_once * ranks), **place},
            )
            running.add(process)
            if stopped:  # by a signal that came while the process was being made
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            running.discard(process)
            if stopped:
                return None
            if code or verb in job.to_do():
                log.error(f"{job.path.name}: {verb} {_ending(code)}")
                return job.path
        return None

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(at_once) as pool:
            failed = [path for path in pool.map(run, range(1, len(jobs) + 1), jobs) if path]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if stopped:
        return 128 + stopped[0]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, their messages are above: "
            + ", ".join(str(RunFolder(path).config) for path in failed)
        )
    return 0


def _ending(code: int) -> str:
    """How a job that failed came to its end. One that was killed has not said so itself."""
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL, mostly for lack of memory"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with {code}" if code else "exited with 0, and is not done"


def _places(ranks: int, at_once: int) -> list[dict[str, str]]:
    """Environment variables of each of the parallel jobs: each job gets its own GPUs.

    Raises:
        UserError: there are GPUs, and too few.
    """
    import torch  # slow to import, and a job brings its own

    count = torch.cuda.device_count()
    if at_once == 1 or not count:
        return [{}] * at_once
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    if len(gpus) < at_once * ranks:
        raise UserError(
            f"jobs.at_once is {at_once}, of {ranks} ranks each, and this machine shows {len(gpus)} "
            f"GPUs: set jobs.at_once to {max(1, len(gpus) // ranks)} or less"
        )
    own = [gpus[i * ranks : (i + 1) * ranks] for i in range(at_once)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names)} for names in own]


def _environment(side_by_side: int) -> dict[str, str]:
    """Ranks side by side share the cores, unless the user has said how many threads each takes.

    torchrun alone would give each rank one.
    """
    if side_by_side == 1:
        return dict(os.environ)
    return {"OMP_NUM_THREADS": str(max(1, cores() // side_by_side)), **os.environ}


def _command(verb: str, job: JobFolder, ranks: int) -> list[str]:
    run = ["salsa_dist", verb, str(job.config)]
    if ranks == 1:
        return [sys.executable, "-m", *run]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    return [sys.executable, "-m", *torchrun, *run]
