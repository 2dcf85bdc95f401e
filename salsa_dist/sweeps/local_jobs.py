"""Running a sweep's jobs on this machine, one after another, each in a process of its own.

A job that fails does not end the sweep: the others run, and what failed is told at the end. A signal
goes on to the job, which saves its state; the same command goes on from there.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from salsa_dist.errors import UserError
from salsa_dist.sweeps.folder import JobFolder


def run_jobs(jobs: Sequence[JobFolder], ranks: int) -> int:
    """Do what is left of each of `jobs` on so many ranks; 0, or 128 and the signal that stopped it all.

    Raises:
        UserError: jobs that failed, once all have been tried.
    """
    stopped: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    failed = []
    try:
        for number, job in enumerate(jobs, 1):
            print(
                f"job {number}/{len(jobs)}: {job.path.name}, {len(job.adapters)} adapters", flush=True
            )
            for verb in job.to_do():
                # A session of its own: Ctrl-C reaches this process alone, and the job once, from here.
                running[:] = [subprocess.Popen(_command(verb, job, ranks), start_new_session=True)]
                code = running[0].wait()
                if stopped:
                    return 128 + stopped[0]
                if code or verb in job.to_do():
                    failed.append(job.path)
                    break
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, their messages are above: "
            + ", ".join(str(path / "config.yaml") for path in failed)
        )
    return 0


def _command(verb: str, job: JobFolder, ranks: int) -> list[str]:
    run = ["salsa_dist", verb, str(job.config)]
    if ranks == 1:
        return [sys.executable, "-m", *run]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    return [sys.executable, "-m", *torchrun, *run]
