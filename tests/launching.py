"""A desk to launch from, with a stand-in for what the ranks run and scripts that play Slurm."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranks import start

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = ROOT / "launchers"
ACCELERATE = f"{LAUNCHERS}/accelerate/"
DEMO = ROOT / "demo" / "demo.yaml"
DRIVER = """
import sys
from salsa_dist.launch.command import main
sys.exit(main(target="stand_in:" + sys.argv.pop(1)))
"""

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
from salsa_dist.errors import UserError

HERE = Path(__file__).parent
RANK = lambda: os.environ["RANK"]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
         "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FROM_SETUP", "HF_HUB_OFFLINE", "SLURM_TMPDIR")

def note(what):
    (HERE / f"{what}.{RANK()}").write_text(str(os.getpid()))

def show(*arguments):
    import salsa_dist
    seen = {name: os.environ.get(name) for name in NAMES}
    seen["code"] = str(Path(salsa_dist.__file__).parent)
    (HERE / f"show.{RANK()}").write_text(json.dumps({**seen, "arguments": arguments}))

def reduce(*arguments):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    one = torch.ones(1)
    dist.all_reduce(one)
    print(f"sum {one.item():.0f} on rank {RANK()}", flush=True)
    dist.destroy_process_group()
    show(*arguments)

def user_error(*arguments):
    raise UserError("shards/ has no index.json: run the recipe first")

def caused(*arguments):
    try:
        raise OSError("the disk is gone")
    except OSError:
        raise UserError("shards/ can't be read") from None

def crash(*arguments):
    note("started")
    if RANK() == "1":
        while not (HERE / "started.0").exists():
            time.sleep(0.05)
        raise RuntimeError("rank one broke")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as if stuck in a collective
    time.sleep(300)

def killed(*arguments):
    if RANK() == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)

def killed_once(*arguments):
    if (HERE / f"first.{RANK()}").exists():
        return show(*arguments)
    note("first")
    if RANK() == "1":
        while not (HERE / "first.0").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)

def save_on_sigterm(*arguments):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    note("started")
    while not stop:
        time.sleep(0.05)
    time.sleep(1)
    note("saved")

def never_stops(*arguments):
    signal.signal(signal.SIGUSR2, lambda *_: note("warned"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("started")
    while True:
        time.sleep(0.05)

def requeued(*arguments):
    if (HERE / f"first.{RANK()}").exists():
        return show(*arguments)
    note("first")
    if RANK() == "0":
        while not (HERE / "first.1").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(300)

if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
"""

CONFIG = """
run: {run}
base: {{name: tiny}}
data: {{shards: shards}}
adapters: [{{name: welsh, language: cy}}]
"""


NUMBERS = itertools.count()


@dataclass
class Result:
    status: int
    out: str
    err: str


class Desk:
    """A folder with a config and the stand-in, and ways to launch from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "run.yaml"
        self.config.write_text(CONFIG.format(run=folder / "run"))
        (folder / "stand_in.py").write_text(STAND_IN)
        hidden = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden}
        self.environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a test can play the terminal's Ctrl-C
        )

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 300) -> Result:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:  # the test's own time limit too
            process.terminate()  # it ends its ranks; killed, it would leave them
            try:
                process.communicate(timeout=45)
            finally:
                process.kill()
            raise
        return Result(process.returncode, out, err)

    def launch_stand_in(self, function: str, *options: str) -> subprocess.Popen[str]:
        args = (function, "--config", str(self.config), *options)
        return self.start(sys.executable, "-c", DRIVER, *args)

    def local(self, function: str, *options: str) -> Result:
        tasks = ("--cluster", "local", "--tasks-per-node", "2")
        return self.finish(self.launch_stand_in(function, *tasks, *options))

    def slurm_py(self, *options: str) -> Result:
        """Forked: planning imports torch and transformers."""
        return self.forked(LAUNCHERS / "slurm.py", *options)

    def forked(self, *words: str | Path, timeout_s: float = 300) -> Result:
        """`python` with `words`."""
        out, err = (self.folder / f"{name}.{next(NUMBERS)}" for name in ("out", "err"))
        process = start(*words, env=self.environment, out=out, err=err, cwd=self.folder)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        return Result(status, out.read_text(), err.read_text())

    def seen(self, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"show.{rank}").read_text())
        return found

    def wait_for(self, name: str) -> Path:
        path, until = self.folder / name, time.monotonic() + 30
        while not (path.exists() and path.read_text()):
            assert time.monotonic() < until, f"{name} never came"
            time.sleep(0.05)
        return path

    def alive(self, name: str) -> bool:
        try:
            os.kill(int((self.folder / name).read_text()), 0)
        except ProcessLookupError:
            return False
        return True


def seen_everywhere(ranks: list[dict[str, Any]], name: str) -> str:
    (value,) = {seen[name] for seen in ranks}
    return str(value)


def sbatch_lines(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    assert len(dict(lines)) == len(lines), "an option stands twice"
    return dict(lines)


SBATCH = """#!/bin/sh
test -z "$SLURM_NTASKS$MASTER_PORT" || exit 1  # of a job that this one was launched from
test "$SLURM_CONF $SBATCH_ACCOUNT" = "/etc/its.conf mine" || exit 1  # the site's and the user's own
echo "Submitted batch job 4242"
"""

SRUN = """#!{python}
import os, subprocess, sys
args = sys.argv[1:]
logs = {{}}
while args[0].startswith("--"):
    flag = args.pop(0)
    if flag in ("--output", "--error"):
        logs[flag] = args.pop(0)
tasks = []
for rank in range(4):
    env = {{**os.environ, "SLURM_JOB_ID": "4242", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2",
           "SLURM_JOB_NODELIST": "alpha[1-2]", "SLURM_NODEID": str(rank // 2),
           "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)}}
    name = lambda flag: logs[flag].replace("%j", "4242").replace("%t", str(rank))
    with open(name("--output"), "a") as out, open(name("--error"), "a") as err:
        command = [a.replace("%j", "4242") for a in args]
        tasks.append(subprocess.Popen(command, env=env, stdout=out, stderr=err))
sys.exit(max(task.wait() for task in tasks))
"""


def submit(desk: Desk, function: str, *more: str) -> tuple[Result, Path]:
    for name, text in (("sbatch", SBATCH), ("srun", SRUN.format(python=sys.executable))):
        (desk.folder / name).write_text(text)
        (desk.folder / name).chmod(0o755)
    desk.environment["PATH"] = f"{desk.folder}{os.pathsep}{desk.environment['PATH']}"
    desk.environment |= {"SLURM_NTASKS": "9", "MASTER_PORT": "1"}
    desk.environment |= {"SLURM_CONF": "/etc/its.conf", "SBATCH_ACCOUNT": "mine"}
    options = ("--nodes", "2", "--tasks-per-node", "2", *more, "training.steps=7")
    result = desk.finish(desk.launch_stand_in(function, *options))
    return result, desk.folder / "run" / "logs" / "4242"
