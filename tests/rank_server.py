"""Forks Python processes that need not import torch, transformers and DeepSpeed: 7 s of a core each.

Reads a JSON object a line: {"words": [...], "env": {...}, "cwd": "...", "out": "...", "err": "..."},
`words` as they come after `python` (-m MODULE, -c CODE or a file). Answers a JSON object a line:
{"pid": 7}, and {"pid": 7, "status": 0} once that process has ended, in the terms of subprocess.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import sys
import threading
import types
from typing import Any

NEEDED = (
    *("salsa_dist", "torch", "transformers", "deepspeed", "numpy", "yaml", "soundfile"),
    *(
        "salsa_dist.cli",
        "salsa_dist.training.loop",
        "salsa_dist.evaluation.run",
        "salsa_dist.report",
    ),
    *("torch.distributed.run", "transformers.models.whisper.modeling_whisper"),
    *("transformers.models.whisper.processing_whisper", "transformers.generation.utils"),
)


def serve() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print when they are imported is no answer
    for name in NEEDED:
        importlib.import_module(name)
    # A million objects that each collection of each process would look at again.
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't be forked safely"
    own_path = [entry for entry in sys.path[1:] if entry not in path_of(dict(os.environ))]
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    selector = selectors.DefaultSelector()
    for source in (0, woken):
        selector.register(source, selectors.EVENT_READ)
    asked = b""
    while True:
        for key, _ in selector.select():
            got = os.read(key.fd, 1 << 16)
            if key.fd == 0:
                if not got:
                    return
                *lines, asked = (asked + got).split(b"\n")
                for line in lines:
                    say(answers, pid=fork(json.loads(line), own_path))
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            say(answers, pid=pid, status=os.waitstatus_to_exitcode(status))


def say(answers: int, **answer: int) -> None:
    os.write(answers, json.dumps(answer).encode() + b"\n")


def fork(asked: dict[str, Any], own_path: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for name, number in ((os.devnull, 0), (asked["out"], 1), (asked["err"], 2)):
            how = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(name, how, 0o644), number)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        random.seed()
        sys.modules["numpy"].random.seed()
        status = run(asked["words"], [*path_of(asked["env"]), *own_path])
    finally:
        os._exit(status)


def path_of(env: dict[str, str]) -> list[str]:
    return [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]


def run(words: list[str], path: list[str]) -> int:
    """As the interpreter runs and ends a program."""
    try:
        kind, rest = words[0], words[1:]
        if kind == "-m":
            sys.argv, sys.path[:] = rest, [os.getcwd(), *path]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv, sys.path[:] = ["-c", *rest[1:]], ["", *path]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv, sys.path[:] = list(words), [os.path.dirname(os.path.abspath(kind)), *path]
            runpy.run_path(kind, run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve()
