"""`--cluster local`: runs the same job as processes on this machine.

    launcher ── rank 0 ── its data workers        <logs>/<job>/<job>_0_log.out, .err, failure.json
             ├─ rank 1 ── its data workers        <logs>/<job>/<job>_1_log.out, …
             └─ follows rank 0's two logs to the terminal

submitit's LocalExecutor writes the job and its tasks run it, so a rank runs the same code as on Slurm;
what a task does with signals, and how it asks to be started again, stays submitit's. Only the watch
over the tasks is ours, since no library does it:

    submitit's controller   waits for all tasks even when one has died (its peers then hang in a
                            collective), gives a stopped task one second to save, hides all GPUs
    torchrun's agent        ends the peers of a dead rank, but starts again at once, progress or not,
                            asks for no checkpoint (SIGUSR2) before a time limit, and sets up ranks by
                            variables of its own

Where a rank died all are started again, as on Slurm and with the same limit (salsa_dist/requeue.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.utils import JobPaths
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, LocalExecutor, LocalJob

from salsa_dist.errors import UserError
from salsa_dist.launch.options import Resources
from salsa_dist.launch.rank import RankCommand
from salsa_dist.launch.sbatch_script import logs_of
from salsa_dist.libraries.submitit import task_words
from salsa_dist.log import log, tell
from salsa_dist.requeue import verdict
from salsa_dist.run.failure_file import failure_in, path_of
from salsa_dist.runs import launches
from salsa_dist.runs.follow import Follower

POLL_S = 0.1
SAVE_GRACE_S = 30.0  # from asking the ranks to stop to ending them
PEER_GRACE_S = 3.0  # the same when a peer has died: nothing can be saved together any more
TRACEBACK_LINES = 20
USER_ERROR = 2  # the exit status of a user's mistake
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_this_machine(resources: Resources) -> Resources:
    """`resources` whose `env` says which GPUs the ranks see. Raises: UserError: there are fewer."""
    if resources.gpus_per_node is None:
        return resources
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = resources.gpus_per_node
    devices = [str(n) for n in range(wanted)] if visible is None else visible.split(",")
    if len([d for d in devices if d]) < wanted:
        raise UserError(f"--gpus-per-node {wanted}: CUDA_VISIBLE_DEVICES={visible} shows fewer")
    own = {"CUDA_VISIBLE_DEVICES": ",".join(devices[:wanted])}
    return resources.model_copy(update={"env": {**resources.env, **own}})


def run_local(job: RankCommand, run: Path, resources: Resources) -> int:
    """Run `job` in run folder `run` to its end and return the launcher's exit status.

    Beside the job's logs are notes of its start and end, for `salsa-dist runs`.

    Args:
        resources: of `on_this_machine`.
    """
    submitted = _write_job(job, logs_of(run), resources)
    logs = submitted.paths.folder
    launches.note(logs, submitted.job_id, "local", job.command, 1, resources.ranks_per_node)
    status = 1
    try:
        status = _run(submitted, run, resources)
    finally:
        launches.note_end(logs, status)
    return status


def _run(submitted: LocalJob[Any], run: Path, resources: Resources) -> int:
    logs = submitted.paths.folder
    rank0 = [Follower(_paths(submitted, 0).stdout, sys.stdout)]
    rank0.append(Follower(_paths(submitted, 0).stderr, sys.stderr))
    log.info(f"{resources.ranks_per_node} ranks on this machine, logs in {logs}")
    with _stop_requests() as stop:
        while True:
            tasks = _Tasks(submitted, resources, rank0)
            try:
                dead = tasks.watch(stop)
            finally:
                tasks.end(0)
            codes = tasks.codes()
            if stop:
                log.warning(f"stopped by {signal.Signals(stop[0]).name}")
                return 128 + stop[0]
            if LOCAL_REQUEUE_RETURN_CODE in codes:
                log.info("the job asked to be started again: it resumes from its newest checkpoint")
                continue
            if not dead:
                return 0
            status = _report(submitted, codes, dead)
            if not resources.tries or status == USER_ERROR:
                return status
            again, why = verdict(run, logs, codes[dead[0]] or 0, resources.tries)
            log.warning(why)
            if not again:
                return status
            for rank in range(len(codes)):  # else the next attempt would be blamed for this one
                path_of(logs, submitted.job_id, rank).unlink(missing_ok=True)


class _NamedOnly(LocalExecutor):
    """LocalExecutor up to the written job: it starts no controller."""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        # Not a bare pid, which comes back sooner or later and would mix the logs of two runs.
        job_id = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        return LocalJob(self.folder, job_id, tasks=range(self.parameters["tasks_per_node"]))


def _write_job(job: RankCommand, folder: Path, resources: Resources) -> LocalJob[Any]:
    executor = _NamedOnly(folder)
    # submitit counts a signal late in the time limit as a timeout; without a limit none is.
    minutes = resources.time or 10 * 365 * 24 * 60
    executor.update_parameters(tasks_per_node=resources.ranks_per_node, timeout_min=minutes)
    submitted = executor.submit(job)
    assert isinstance(submitted, LocalJob)
    return submitted


def _paths(job: LocalJob[Any], rank: int) -> JobPaths:
    return JobPaths(job.paths.folder, job.job_id, rank)


class _Tasks:
    """The processes of one attempt at a job, one per rank."""

    def __init__(self, job: LocalJob[Any], resources: Resources, rank0: Sequence[Follower]) -> None:
        self._resources = resources
        self._rank0 = rank0
        self._start = time.monotonic()
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(resources.ranks_per_node):
                self._processes.append(_start_task(job, resources, rank))
        except BaseException:
            self.end(0)
            raise

    def codes(self) -> list[int | None]:
        return [process.poll() for process in self._processes]

    def watch(self, stop: list[int]) -> list[int]:
        """Wait for the end of all; the ranks that were first seen dead, none if all went well."""
        limit_s = float("inf") if self._resources.time is None else 60.0 * self._resources.time
        warned = False
        while True:
            codes = self.codes()
            self._follow()
            if dead := [rank for rank, code in enumerate(codes) if code]:
                self.end(PEER_GRACE_S)
                return dead
            if None not in codes:
                return []
            if stop:
                log.warning(
                    f"stopping: the ranks have {SAVE_GRACE_S:.0f} s to save; again to end them now"
                )
                self.end(SAVE_GRACE_S, stop)
                return []
            ran_s = time.monotonic() - self._start
            if not warned and ran_s > limit_s - self._resources.signal_delay_s:
                warned = True
                self._signal(signal.SIGUSR2)
            if ran_s > limit_s:
                self.end(PEER_GRACE_S)
                raise UserError(
                    f"the --time limit of {self._resources.time:g} min passed and the ranks were "
                    "ended: raise --time, or launch again to resume from the last checkpoint"
                )
            time.sleep(POLL_S)

    def end(self, grace_s: float, stop: Sequence[int] = ()) -> None:
        """Ask all processes to stop, wait, then end the remaining ones, including data workers.

        A stop request after those that are in `stop` now cuts the wait short.
        """
        if grace_s:
            self._signal(signal.SIGTERM)
        until, asked = time.monotonic() + grace_s, len(stop)
        while None in self.codes() and time.monotonic() < until and len(stop) == asked:
            self._follow()
            time.sleep(POLL_S)
        for process in self._processes:
            try:  # each task leads a process group, which outlives it if its workers do
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        for process in self._processes:
            process.wait()
        self._follow()

    def _signal(self, signum: signal.Signals) -> None:
        # To the task alone: its data workers must live for it to finish the step and save.
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signum)

    def _follow(self) -> None:
        for follower in self._rank0:
            follower.pump()


def _start_task(job: LocalJob[Any], resources: Resources, rank: int) -> subprocess.Popen[bytes]:
    python = [sys.executable, "-u", *task_words(job.paths.folder)]
    command = python
    if resources.setup:  # as in an sbatch script; exec keeps the process that signals are sent to
        command = ["bash", "-c", "\n".join([*resources.setup, 'exec "$@"']), "setup", *python]
    environment = {
        **os.environ,
        **resources.env,
        "SUBMITIT_LOG_LEVEL": "WARNING",  # rank 0's log is read as it grows
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": job.job_id,
        "SUBMITIT_LOCAL_NTASKS": str(resources.ranks_per_node),
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_GLOBALID": str(rank),
        "SUBMITIT_LOCAL_LOCALID": str(rank),
    }
    paths = _paths(job, rank)
    with paths.stdout.open("ab") as out, paths.stderr.open("ab") as err:
        # A session of its own: Ctrl-C reaches the launcher alone, which lets the ranks save first.
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals that asked the launcher to stop, in the order they came."""
    seen: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)

    before: dict[int, Any] = {}
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup stays nohup
            before[signum] = signal.signal(signum, note)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(job: LocalJob[Any], codes: Sequence[int | None], dead: Sequence[int]) -> int:
    """Say which rank failed first and how; the launcher's exit status."""
    failures = {}
    for rank in range(len(codes)):
        if failure := failure_in(path_of(job.paths.folder, job.job_id, rank)):
            failures[rank] = failure
            with _paths(job, rank).stderr.open("a", encoding="utf-8") as own:
                own.write(("error: " if failure["user_error"] else "") + failure["text"] + "\n")
    # A rank that left no word was killed; what its peers say then is only that it is gone.
    silent = [rank for rank in dead if rank not in failures]
    first = silent[0] if silent else min(failures, key=lambda rank: failures[rank]["time"])
    log_path = _paths(job, first).stderr
    if silent:
        code = codes[first] or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        # Rank 0's log is already on the terminal.
        log.error("\n".join([f"rank {first} {how}", *(_end(lines) if first else [])]))
    elif failures[first]["user_error"]:
        tell(f"error: {failures[first]['text']}", failures[first].get("causes", ""))
        return USER_ERROR
    else:
        lines = _end(failures[first]["text"].splitlines())
        log.error("\n".join([f"rank {first} failed:", *lines]))
    log.error(f"log of rank {first}: {log_path}")
    return 1


def _end(lines: Sequence[str]) -> list[str]:
    cut = ["  …"] if len(lines) > TRACEBACK_LINES else []
    return [*cut, *lines[-TRACEBACK_LINES:]]
