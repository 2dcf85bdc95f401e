"""Ranks of one program, as processes of this machine that meet at a free port.

They are forked from a server that has imported torch, transformers and DeepSpeed, since importing
takes more of a core than most tests do. What is read when these are imported (`AT_IMPORT`) can't be
changed for a forked rank: `fresh=True` starts it anew.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

HERE = Path(__file__).parent
AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH_", "DS_", "PYTHONHASH", "CXX")


class Process(Protocol):
    """What `subprocess.Popen` and a forked process share."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """One process of the server's, used as `subprocess.Popen` is."""

    def __init__(self, server: Server, args: list[str], pid: int) -> None:
        self.server, self.args, self.pid = server, args, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.returncode = self.server.ended.get(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self.server.news:
            ended = lambda: self.poll() is not None or self.server.over  # noqa: E731
            if not self.server.news.wait_for(ended, timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        # The server may have seen it end already, its answer still on the way.
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    def __init__(self) -> None:
        self.ended: dict[int, int] = {}
        self.started: list[int] = []
        self.over = False
        self.news = threading.Condition()
        self.environment = dict(os.environ)
        words = [sys.executable, HERE / "rank_server.py"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            with self.news:
                if "status" in answer:
                    self.ended[answer["pid"]] = answer["status"]
                else:
                    self.ended.pop(answer["pid"], None)  # of an older process with this number
                    self.started.append(answer["pid"])
                self.news.notify_all()
        with self.news:
            self.over = True
            self.news.notify_all()

    def start(
        self, words: list[str], env: dict[str, str], out: Path, err: Path, cwd: Path | None
    ) -> Forked:
        early = {
            key
            for key in env.keys() | self.environment.keys()
            if key.startswith(AT_IMPORT)
            # DeepSpeed sets it as it is imported, here too.
            and key != "DS_ACCELERATOR"
            and env.get(key) != self.environment.get(key)
        }
        assert not early, f"{early} are read when libraries are imported: start it fresh"
        asked = {
            "words": words,
            "env": env,
            "cwd": str(cwd or os.getcwd()),
            "out": str(out),
            "err": str(err),
        }
        assert self.process.stdin is not None
        with self.news:
            count = len(self.started)
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
            self.news.wait_for(lambda: len(self.started) > count or self.over)
            assert not self.over, "the server of ranks has ended: its error stands above"
            return Forked(self, words, self.started[count])


@functools.cache
def server() -> Server:
    return Server()


def start(
    *words: str | Path,
    env: dict[str, str],
    out: Path,
    err: Path | None = None,
    cwd: Path | None = None,
    fresh: bool = False,
) -> Process:
    """A Python process; `words` come after `python`. Its output is appended to `out` and `err`."""
    said = [str(word) for word in words]
    if not fresh:
        return server().start(said, env, out, err or out, cwd)
    with out.open("ab") as log, (err or out).open("ab") as errors:
        return subprocess.Popen([sys.executable, *said], env=env, cwd=cwd, stdout=log, stderr=errors)


def world(count: int, port: int, rank: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    count: int,
    *words: str | Path,
    folder: Path,
    env: dict[str, str] | None = None,
    timeout_s: float = 500,
) -> subprocess.CompletedProcess[str]:
    """Runs all ranks to their end, as torchrun does: when one fails, the others get SIGTERM.

    One rank alone gets none of a launcher's variables. Logs are written into `folder`.
    """
    port, given, logs = free_port(), {**os.environ, **(env or {})}, []
    both: list[Process] = []
    for rank in range(count):
        logs.append([folder / f"rank-{rank}.{port}.{kind}" for kind in ("out", "err")])
        own = given | (world(count, port, rank) if count > 1 else {})
        both.append(start(*words, env=own, out=logs[-1][0], err=logs[-1][1]))
    status, until = 0, time.monotonic() + timeout_s
    try:
        while any(rank.poll() is None for rank in both):
            status = status or next((s for rank in both if (s := rank.poll())), 0)
            if status:
                for rank in both:
                    rank.terminate()
                until = min(until, time.monotonic() + 30)
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired([str(word) for word in words], timeout_s)
            time.sleep(0.05)
    finally:
        for rank in both:
            rank.kill()
            rank.wait()
    status = status or next((s for rank in both if (s := rank.poll())), 0)
    out, err = ("".join(log[kind].read_text() for log in logs) for kind in (0, 1))
    return subprocess.CompletedProcess([str(word) for word in words], status, out, err)


@contextmanager
def two_ranks(folder: Path, program: str, *words: str, fresh: bool = False) -> Iterator[list[Process]]:
    """Both run `program` with `words`; each writes its `log-N` and `failure-N.json` into `folder`."""
    port = free_port()
    both = []
    for rank in (0, 1):
        env = {**os.environ, **world(2, port, rank)}
        env["SALSA_FAILURE_FILE"] = str(folder / f"failure-{rank}.json")
        both.append(start("-c", program, *words, env=env, out=folder / f"log-{rank}", fresh=fresh))
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.wait()
