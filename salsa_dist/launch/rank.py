"""The work of one rank of a launched job: submitit pickles `RankCommand`, and each task calls it.

    launcher                 task of rank r                      salsa_dist
    RankCommand(train, …) ──►  __call__() sets the environment ──►  run_command(train, …)
           ▲                      │ RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
           │                      │ MASTER_ADDR MASTER_PORT OMP_NUM_THREADS
           └── <job>_<r>_failure.json ◄── whatever stopped this rank

What is in a failure file is said in salsa_dist/run/failure_file.py.
On Slurm, rank 0 listens on a port that was free on its node, and says so to the others in a file
`rendezvous-<times requeued>.json` beside the logs: `{"address": …, "port": …}`.

The class is pickled by value (a container need not have salsa_dist), so it imports what it needs
where it needs it, and nothing heavy before the rank's environment is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = "salsa_dist.cli:run_command"
RENDEZVOUS_S = 600.0  # rank 0 may be that much later than the others


@dataclass(frozen=True)
class RankCommand:
    """`command` on `config_path` with `overrides`, as one rank of the world submitit started.

    A class and not submitit's CommandFunction, because only something with `checkpoint()` is
    requeued.
    """

    command: str
    config_path: str
    overrides: tuple[str, ...] = ()
    target: str = TARGET  # "module:function", called as function(command, config_path, overrides)
    cpus_per_task: int | None = None
    local_port: int | None = None  # a free port of this machine; None: ranks on several machines
    code: str | None = None  # folder with the salsa_dist to run; None: the one that is installed

    def __call__(self) -> None:
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # submitit ignores SIGTERM with a warning, since Slurm sends it ahead of the signal that
            # counts. Here it means stop: at once, unless the command has a handler that saves. First of
            # all, since a peer that failed may end this rank before its imports are done.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.code is not None:
            _take_code_from(self.code)
        import submitit

        from salsa_dist.errors import StartAgain, UserError
        from salsa_dist.run import failure_file

        environment = submitit.JobEnvironment()
        if environment.cluster == "debug":  # in the launcher's process: its errors are ours
            return self._run()

        logs, job = environment.paths.folder, environment.job_id
        failure = failure_file.path_of(logs, job, environment.global_rank)
        failure.unlink(missing_ok=True)  # of this job before it was requeued
        if environment.global_rank == 0:
            failure_file.forget_from(environment.num_tasks, logs, job)
        os.environ[failure_file.VARIABLE] = str(failure)
        try:
            if environment.cluster == "slurm":
                _meet(logs)
            self._run()
        except Exception as error:
            expected = isinstance(error, UserError)
            again = isinstance(error, StartAgain)
            _write_failure(environment.global_rank, error, expected, final=expected and not again)
            if environment.cluster == "local":  # the launcher tells, once for all ranks
                sys.exit(2 if expected else 1)
            if expected:
                from salsa_dist.log import causes, tell

                tell(f"error: {error}", causes(error))
                sys.exit(2)
            raise

    def checkpoint(self) -> Any:
        """The same job again: the trainer finds its newest checkpoint on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> None:
        import importlib

        self._set_environment()
        module, _, function = self.target.partition(":")
        run = getattr(importlib.import_module(module), function)
        run(self.command, self.config_path, list(self.overrides))

    def _set_environment(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        from salsa_dist.machine import cores

        if self.local_port is not None:
            os.environ["MASTER_PORT"] = str(self.local_port)
        world = TorchDistributedEnvironment()  # takes MASTER_PORT from the environment
        # Every rank keeps seeing all devices of its node and takes the one of its LOCAL_RANK.
        world.export(set_cuda_visible_devices=False, overwrite=True)
        if self.local_port is not None:  # the host's own name need not resolve
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        threads = self.cpus_per_task or cores() // world.local_world_size
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))


def _take_code_from(folder: str) -> None:
    # In front of the working folder, which `python -m` puts before PYTHONPATH.
    sys.path.insert(0, folder)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for this rank's own children
    with contextlib.suppress(OSError):
        os.utime(folder)  # in use: not to be cleared as old


def _write_failure(rank: int, error: Exception, user_error: bool, final: bool) -> None:
    from salsa_dist.log import causes
    from salsa_dist.run.failure_file import write_failure
    from salsa_dist.versions import named_in

    # The first frame is the call above, which tells a reader nothing.
    inner = error.__traceback__.tb_next if error.__traceback__ else None
    text = str(error) if user_error else "".join(traceback.format_exception(None, error, inner))
    if not user_error and (line := named_in(error)) is not None:
        text += line
    write_failure(rank, text, final, causes(error) if user_error else "")


def _meet(folder: Path) -> None:
    """Agree on a port that is rank 0's own. submitit's is made from the job id, whoever has it."""
    from salsa_dist.whole_file import replace_file

    attempt = os.environ.get("SLURM_RESTART_COUNT") or "0"
    path = folder / f"rendezvous-{attempt}.json"
    if os.environ["SLURM_PROCID"] == "0":
        # Held until torch takes the socket itself (placement/ranks.py): nobody can come between.
        listening = socket.create_server(("", 0), backlog=4096, dualstack_ipv6=False)
        port = listening.getsockname()[1]
        os.environ["SALSA_RENDEZVOUS_FD"] = str(listening.detach())
        replace_file(path, json.dumps({"address": socket.gethostname(), "port": port}))
    else:
        until = time.monotonic() + RENDEZVOUS_S
        while not path.exists():
            if time.monotonic() > until:
                raise RuntimeError(f"rank 0 did not start in {RENDEZVOUS_S:.0f} s: no {path}")
            time.sleep(0.2)
            os.listdir(folder)  # NFS looks again
        port = json.loads(path.read_text(encoding="utf-8"))["port"]
    os.environ["MASTER_PORT"] = str(port)
