"""Whether two commits train alike, to the bit: run it before a change lands that must alter no result.

    python tools/compare_losses.py                      HEAD^ and HEAD
    python tools/compare_losses.py --against main       that one and HEAD

Each commit is unpacked into a temporary folder and does the runs of `tiny_runs.py`, on a tiny base and
tiny shards that the older one made. Compared are loss, label count, rate and gradient norm per step and
adapter, losses on dev clips, what halving dropped, saved tensors and transcripts. The first difference
is printed, and the exit status is then 1. It takes two minutes on two cores.

What only the newer commit records is no difference; what it no longer records is one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tiny_runs import RUNS
from torch import Tensor, equal

HERE = Path(__file__).resolve().parent
# What an event of a run says of its results.
TOLD = {"step": ("clips", "adapters"), "dev_loss": ("adapters",), "rung": ("dev_loss", "dropped")}


def main() -> int:
    """Compare two commits; 0 where they train alike."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--against", default="HEAD^", metavar="REV", help="the older commit")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="only these")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-losses-") as name:
        folder = Path(name)
        trees = {rev: _unpacked(rev, folder / rev.replace("/", "_")) for rev in (args.against, "HEAD")}
        made = _start(trees[args.against], folder / "log", "make", str(folder))
        if made.wait():
            return _failed(args.against, folder / "log")
        logs = {rev: tree / "log" for rev, tree in trees.items()}
        both = {
            rev: _start(tree, logs[rev], "run", str(folder), str(tree / "done"), *args.runs)
            for rev, tree in trees.items()
        }
        ended = {rev: process.wait() for rev, process in both.items()}
        for rev, status in ended.items():
            if status:
                return _failed(rev, logs[rev])
        older, newer = (dict(_results(tree / "done")) for tree in trees.values())
    for what, value in older.items():
        if not _same(value, newer.get(what)):
            print(f"first difference, {what}:")
            print(f"  {args.against}: {_short(value)}\n  HEAD: {_short(newer.get(what))}")
            return 1
    print(f"equal to the bit: {len(older):,} results of {len(args.runs)} runs")
    return 0


def _unpacked(rev: str, folder: Path) -> Path:
    """The files of a commit, in `folder`."""
    tar = subprocess.run(["git", "archive", rev], cwd=HERE.parent, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _start(tree: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """`tiny_runs.py` with the code of `tree`."""
    path = os.pathsep.join([str(tree), str(tree / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(HERE / "tiny_runs.py"), *words],
            env=environment,
            cwd=tree,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _failed(rev: str, log: Path) -> int:
    print(log.read_text(errors="replace")[-4000:])
    print(f"the runs of {rev} did not end well: see above")
    return 1


def _results(folder: Path) -> Iterator[tuple[str, Any]]:
    """What the runs in `folder` gave, each under its name, in the order in which it came to be."""
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        events = run / "events.jsonl"
        for line in events.read_text(encoding="utf-8").splitlines() if events.is_file() else ():
            event = json.loads(line)
            for told in TOLD.get(event["event"], ()):
                where = f"{run.name}: {event['event']} {event.get('step', '')}".rstrip()
                if told != "adapters":
                    yield f"{where}, {told}", event.get(told)
                    continue
                for adapter, numbers in event[told].items():
                    named = numbers if isinstance(numbers, dict) else {"loss": numbers}
                    for number, value in named.items():
                        yield f"{where}, {number} of {adapter}", value
        for file in sorted((run / "adapters").rglob("*.safetensors")):
            for name, tensor in load_file(file).items():
                yield f"{run.name}: {name} of {file.relative_to(run / 'adapters')}", tensor
        for file in sorted((run / "evaluation").glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                told = json.loads(line)
                if "hypothesis" in told:
                    who = f"{told['method']} {told['adapter']}"
                    yield f"{run.name}: transcript of {told['key']} by {who}", told["hypothesis"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and equal(one, other)
    return bool(one == other)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}, norm {float(value.double().norm())!r}"
    return "nothing" if value is None else repr(value)


if __name__ == "__main__":
    sys.exit(main())
