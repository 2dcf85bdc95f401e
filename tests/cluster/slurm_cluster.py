"""The cluster of cluster.sh as an object, and runs of the real launcher and trainer on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from salsa_dist import SteeringVectors

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip", "nsenter", "unshare")
START_S, END_S = 60.0, 420.0  # generous: the machine may be busy


def why_not() -> str | None:
    """Why this machine can't have the cluster; None where it can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if missing := [p for p in PROGRAMS if shutil.which(p, path=path) is None]:
        return f"no {', '.join(missing)} here (tests/cluster/install.sh, as root on Debian)"
    if os.geteuid() != 0:
        return "only root can make its namespaces"
    made = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {made.stderr.strip()}" if made.returncode else None


class Cluster:
    """Four nodes, n1 to n4, of 16 made-up cores each. Use as a context manager.

    Args:
        folder: for all its files; made.
        accounting: with a database of jobs behind it, so that sacct works.
    """

    def __init__(self, folder: Path, accounting: bool = False) -> None:
        self.folder, self.accounting = folder, accounting

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True)
        with (self.folder / "cluster.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", str(HERE / "cluster.sh"), str(self.folder)],
                env={**os.environ, "ACCOUNTING": "1" if self.accounting else ""},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(lambda: (self.folder / "run/ready").exists(), "the cluster is up", START_S)
        except BaseException:
            self.__exit__()
            print((self.folder / "cluster.log").read_text())
            raise
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self._login = int(children.split()[0])
        return self

    @property
    def disk(self) -> Path:
        """The small disk that can be filled, as it is called in the cluster."""
        return self.folder / "disk"

    def seen_from_here(self, path: Path) -> Path:
        return Path(f"/proc/{self._login}/root{path}")

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()  # takes the first process of the namespace with it, and so all
            self._process.wait()

    def run(self, *command: str | Path, node: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the login host, or on a node."""
        words = ["nsenter", f"--target={self._login}", "--net", "--mount", "--uts", "--pid", "--"]
        if node:
            inner = (self.folder / f"run/{node}.pid").read_text().strip()
            words += ["nsenter", f"--target={inner}", "--net", "--mount", "--uts", "--"]
        environment = {
            **os.environ,
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*words, *map(str, command)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def slurm(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def processes(self, node: str, having: str = "") -> list[int]:
        """Ids, as seen from here, of a node's processes whose command line has `having`.

        The two that keep the node's namespaces are not among them.
        """
        inside = self.run("stat", "-Lc", "%i", "/proc/self/ns/net", node=node)
        wanted = int(inside.stdout)
        return [pid for pid, command in _processes_in(wanted) if having in command]

    def link(self, node: str, state: str) -> None:
        """Put a node's cable `up` or `down`."""
        self.slurm("ip", "link", "set", f"port{node.removeprefix('n')}", state)

    def crash(self, node: str) -> None:
        """slurmd, its steps and all tasks of a node die at once."""
        for pid in self.processes(node):
            _kill(pid, signal.SIGKILL)

    def daemons_on(self, job: str) -> str:
        """What slurmctld and the slurmds have logged of a job."""
        texts = []
        for path in sorted((self.folder / "log").glob("slurm*.log")):
            own = [x for x in path.read_text(errors="replace").splitlines() if job in x]
            texts.append("\n".join([f"== {path.name}", *own[-40:]]))
        return "\n".join(texts)

    def wait_idle(self, node: str) -> None:
        def idle() -> bool:
            state = self.slurm("sinfo", "--noheader", "--nodes", node, "--format=%T").strip()
            return state in ("idle", "mixed", "allocated")

        wait_until(idle, f"{node} is back", START_S)


def _processes_in(network: int) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if (folder / "ns/net").stat().st_ino != network:
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "sleep 3600" not in command and "hostname" not in command:
            yield int(folder.name), command


def _kill(pid: int, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, how)


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has been sent a signal that it has not taken yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line[:6] in ("SigPnd", "ShdPnd")]
    return any(mask >> (number - 1) & 1 for mask in masks)


def is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs: all have taken a SIGSTOP."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def wait_until(true: Callable[[], Any], what: str, limit_s: float) -> float:
    """Seconds until `true()`; an AssertionError that says `what` never came after `limit_s`."""
    start = time.monotonic()
    while not true():
        took = time.monotonic() - start
        assert took < limit_s, f"not in {limit_s:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - start


class Run:
    """One run of the launcher on the cluster.

    Args:
        config: its YAML file; None: of a transcription, whose words are among the options.
        options: for launchers/slurm.py.
        folder: of the run, as it is called in the cluster; default: beside its config.
    """

    def __init__(
        self, cluster: Cluster, config: Path | None, *options: str, folder: Path | None = None
    ) -> None:
        self.cluster, self.config, self.options = cluster, config, options
        self.inside = folder or config.parent / "run"  # type: ignore[union-attr]
        self.folder = cluster.seen_from_here(self.inside)
        self.job = ""

    def launch(self) -> Run:
        command = [sys.executable, ROOT / "launchers/slurm.py"]
        config = ("--config", str(self.config)) if self.config else ()
        done = self.cluster.run(*command, *config, *self.options)
        assert done.returncode == 0, done.stdout + done.stderr
        self.job = done.stdout.split("submitted job ")[1].split(":")[0]
        return self

    def state(self) -> str:
        words = ("squeue", "--noheader", "--states=all", "--format=%T", "--job", self.job)
        return self.cluster.slurm(*words).strip()

    def events(self, event: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        text = path.read_text().splitlines(keepends=True) if path.exists() else []
        lines = [json.loads(line) for line in text if line.endswith("\n")]
        return [line for line in lines if line["event"] == event]

    def wait_for_step(self, step: int, starts: int = 1) -> None:
        """Until the `starts`-th start has done `step` steps or more."""

        def there() -> bool:
            assert self.state() not in ("FAILED", "CANCELLED", "COMPLETED"), self.logs()
            steps = self.events("step")
            return len(self.events("start")) >= starts and bool(steps) and steps[-1]["step"] >= step

        wait_until(there, f"step {step} of start {starts} {self.folder}", END_S)

    def wait_for_end(self, state: str = "COMPLETED") -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        def has_ended() -> bool:
            # One that is being requeued was seen as COMPLETED for a moment.
            if self.state() in ended:
                time.sleep(2)
            return self.state() in ended

        wait_until(has_ended, f"job {self.job} ends: {self.state()}", END_S)
        assert self.state() == state, self.logs()

    def wait_for_requeue(self, limit_s: float) -> float:
        """Seconds until the job has been requeued, for the first time."""
        return wait_until(lambda: self.restarts() > 0, f"requeued {self.folder}", limit_s)

    def restarts(self) -> int:
        shown = self.cluster.slurm("scontrol", "show", "job", self.job)
        return int(shown.split("Restarts=")[1].split()[0])

    def resumed_at(self) -> list[int]:
        """The step at which each start began."""
        return [event["resumed_step"] for event in self.events("start")]

    def tasks(self, node: str) -> list[int]:
        """Ids, as seen from here, of this run's Python tasks on a node."""
        having = f"submitit.core._submit {self.inside}/logs/"
        found = self.cluster.processes(node, having)
        return [p for p in found if b"srun" not in Path(f"/proc/{p}/cmdline").read_bytes()]

    def logs(self) -> str:
        """The ends of all logs, for a failed test's report."""
        texts = []
        for path in sorted(self.folder.glob("logs/*/*")):
            if path.suffix in (".out", ".err", ".json", ".jsonl"):
                texts.append(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)

    def vectors(self) -> dict[str, torch.Tensor]:
        return {
            f"{path.name} {site}": vector
            for path in sorted((self.folder / "adapters").iterdir())
            for site, vector in SteeringVectors.load(path).vectors.items()
        }


def assert_equal(found: Run, wanted: Run, tolerance: float = 0) -> None:
    """Invariant 3: relative L2 a site; with a tolerance of 0, to the bit."""
    ours, theirs = found.vectors(), wanted.vectors()
    assert ours.keys() == theirs.keys()
    for name, vector in theirs.items():
        if tolerance:
            assert (ours[name] - vector).norm() / vector.norm() < tolerance, name
        else:
            assert torch.equal(ours[name], vector), name
