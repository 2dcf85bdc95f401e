"""Does a run that is killed at any moment end with the vectors of the run that never was?

    python benchmarks/soak.py --json OUT [--kills 200] [--steps 16] [--seed 0]

    uninterrupted   rank 0, rank 1 ───────────────────────────► vectors
    kill i          rank 0, rank 1 ────✗ SIGKILL               a folder of its own
                                       └─ started again ──────► vectors, the same to the bit

Each start is two processes of the real training loop on a tiny base, with a checkpoint after every
step. One kill in six falls into the first two seconds, which are the start; the others up to a step's
time after a step that is sampled, so into reading, computing or writing, however loaded the machine is.
The victim is one rank or both; a rank that is left is ended as the local launcher ends it. The
processes are forked from one that has imported everything, so that a start costs a second and not ten.
A moment after the run's end is no kill, and another is sampled. Steps, moments and victims are sampled
from the seed and recorded. A soak that broke off goes on from the kills in OUT.

{"kills": n, "equal": n, "rows": [{"kill": 0, "moment_s": …, "victims": [1], "last_step": steps seen
  before it or null, "resumed_step": …, "starts": 2, "equal": true}, …]}
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads don't outlive a fork
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import salsa_dist  # noqa: F401, I001  first: it guards the import of transformers
import deepspeed  # noqa: F401  its import is most of a start
import torch
import torch.utils.tensorboard
import transformers.models.whisper.modeling_whisper  # noqa: F401
from tiny import make_base, make_config, make_shards

from salsa_dist.whole_file import replace_file
from salsa_dist import SteeringVectors, load_config, train

RANKS = 2
PEER_GRACE_S = 3.0
START_S = 2.0  # a start takes about so long where nothing else runs
LIMIT_S = 300.0  # a start that takes so long hangs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "date": str(date.today()),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores shared with "
        f"other work, torch {torch.__version__}",
        "command": " ".join(["python", *sys.argv]),
        "ranks": RANKS,
        "steps": options.steps,
        "seed": options.seed,
        "too_late": 0,
        "seconds": 0.0,
        "rows": [],
    }
    if options.json.exists():
        before = json.loads(options.json.read_text(encoding="utf-8"))
        if (before["steps"], before["seed"]) != (options.steps, options.seed):
            sys.exit(f"{options.json} is of another soak: name another file")
        report |= {name: before[name] for name in ("too_late", "seconds", "rows")}
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        soak = Soak(folder, options.steps)
        started = time.monotonic() - report["seconds"]
        wanted, span_s = soak.uninterrupted()
        report["uninterrupted_s"] = span_s
        rows = report["rows"]
        while len(rows) < options.kills:
            sampler = random.Random(f"{options.seed} {len(rows) + report['too_late']}")
            after_step = sampler.randrange(options.steps) if sampler.random() > 1 / 6 else None
            wait_s = sampler.uniform(0, START_S if after_step is None else span_s / options.steps)
            victims = sampler.choice([[0], [1], [0, 1]])
            row = soak.killed(after_step, wait_s, victims, wanted)
            if row is None:
                report["too_late"] += 1
                continue
            rows.append({"kill": len(rows), **row})
            print(rows[-1], flush=True)
            report["kills"] = len(rows)
            report["equal"] = sum(r["equal"] for r in rows)
            report["seconds"] = round(time.monotonic() - started, 1)
            # After each: what a long soak has found must not be lost with its machine.
            replace_file(options.json, json.dumps(report, indent=1) + "\n")
    print(f"{report['equal']} of {report['kills']} equal")
    sys.exit(report["equal"] != report["kills"])


class Soak:
    """Runs of one config, each in a folder of its own below `folder`."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        base, shards = make_base(folder / "base"), make_shards(folder / "shards")
        training = {"steps": steps, "lr": 0.02, "save_every_s": 0, "hang_after_s": 60}
        self.config = make_config(folder, base, shards, training=training)

    def uninterrupted(self) -> tuple[dict[str, torch.Tensor], float]:
        """Its vectors, and the seconds that it took from its start to its end."""
        run = self.folder / "uninterrupted"
        started = time.monotonic()
        codes = _ended(self._start(run), time.monotonic() + LIMIT_S)
        took = time.monotonic() - started
        assert codes == [0] * RANKS, (run / "log").read_text()
        return vectors(run), round(took, 2)

    def killed(
        self,
        after_step: int | None,
        wait_s: float,
        victims: list[int],
        wanted: dict[str, torch.Tensor],
    ) -> dict[str, Any] | None:
        """One run that is killed and started again; None: it had ended by then.

        Args:
            after_step: the kill waits for the end of this step; None: only for the start.
            wait_s: and so many seconds longer.
        """
        run = self.folder / "killed"
        shutil.rmtree(run, ignore_errors=True)
        started = time.monotonic()
        ranks = self._start(run)
        while (
            after_step is not None
            and not any(event["step"] >= after_step for event in _events(run, "step"))
            and all(_code(pid) is None for pid in ranks)
        ):
            time.sleep(0.005)
        time.sleep(wait_s)
        if any(_code(pid) is not None for pid in ranks):
            codes = _ended(ranks, time.monotonic() + LIMIT_S)
            assert codes == [0] * RANKS, (run / "log").read_text()
            return None
        moment_s = time.monotonic() - started
        for rank in victims:
            os.kill(ranks[rank], signal.SIGKILL)
        last = _events(run, "step")
        for pid in ranks:
            if _code(pid) is None:
                os.kill(pid, signal.SIGTERM)
        _ended(ranks, time.monotonic() + PEER_GRACE_S)
        codes = _ended(self._start(run), time.monotonic() + LIMIT_S)
        starts = _events(run, "start")
        done = codes == [0] * RANKS
        if not done:
            print((run / "log").read_text()[-4000:], file=sys.stderr)
        found = vectors(run) if done else {}
        return {
            "moment_s": round(moment_s, 3),
            "victims": victims,
            "last_step": last[-1]["step"] if last else None,
            "resumed_step": starts[-1]["resumed_step"] if starts else None,
            "starts": len(starts),
            "equal": found.keys() == wanted.keys()
            and all(torch.equal(found[site], vector) for site, vector in wanted.items()),
            "seconds": round(time.monotonic() - started, 2),
        }

    def _start(self, run: Path) -> list[int]:
        """The process ids of the ranks, each the leader of a group of its own."""
        run.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sys.stdout.flush()
        ranks = []
        for rank in range(RANKS):
            pid = os.fork()
            if pid == 0:
                _be(rank, port, self.config, run)
            _codes.pop(pid, None)  # of a process that had that number long ago
            ranks.append(pid)
        return ranks


def _be(rank: int, port: int, config: Path, run: Path) -> None:
    """This forked process as one rank, to its end."""
    code = 1
    try:
        os.setpgrp()  # not a session: Linux gives each its own share of the CPU
        log = os.open(run / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        train(load_config(config, [f"run={run}"]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_codes: dict[int, int] = {}


def _code(pid: int) -> int | None:
    """What a rank ended with; None while it runs."""
    if pid not in _codes:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            return None
        _codes[pid] = os.waitstatus_to_exitcode(status)
    return _codes[pid]


def _ended(ranks: list[int], until: float) -> list[int | None]:
    """Wait for the ranks, then end what is left of them and of their data workers."""
    while any(_code(pid) is None for pid in ranks) and time.monotonic() < until:
        time.sleep(0.01)
    codes = [_code(pid) for pid in ranks]
    for pid in ranks:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    while any(_code(pid) is None for pid in ranks):
        time.sleep(0.01)
    return codes


def _events(run: Path, event: str) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = []
    for line in text.splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if fields["event"] == event:
            found.append(fields)
    return found


def vectors(run: Path) -> dict[str, torch.Tensor]:
    """By adapter and site, (hidden,) fp32."""
    return {
        f"{path.name} {site}": vector
        for path in sorted((run / "adapters").iterdir())
        for site, vector in SteeringVectors.load(path).vectors.items()
    }


if __name__ == "__main__":
    main()
