"""Why a job failed: the first rank's real error, and where its log is.

    <job>_<rank>_failure.json   what a rank said itself, with its time; the earliest counts
    srun: error: n2: task 3: Killed      in rank 0's .err: a rank that could say nothing any more
    last lines of rank 0's .err          where neither is there

A rank that was killed comes first: what its peers say then is only that it is gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from salsa_dist.run.failure_file import failures

LINES = 12
_SRUN = re.compile(r"^srun: error: (\S+): tasks? (\d+)[\d,-]*: (.*)$", re.MULTILINE)
_ENDED_BY_SRUN = ("Terminated", "Exited with exit code")


@dataclass(frozen=True)
class Failure:
    """The rank that failed first, its error and its log; rank None: unknown."""

    rank: int | None
    text: str
    log: Path
    user_error: bool = False


def first_failure(folder: Path, job: str) -> Failure:
    """The first failure of the job with logs in `folder`."""
    own = log_paths(folder, job, 0)[1]
    said = list(failures(folder, job))
    batch = _tail(own, 64_000)
    for node, task, how in _SRUN.findall(batch):
        rank = int(task)
        if not how.startswith(_ENDED_BY_SRUN) and rank not in {f["rank"] for f in said}:
            return Failure(rank, f"rank {rank} on {node}: {how}", log_paths(folder, job, rank)[1])
    if said:
        first = min(said, key=lambda failure: failure["time"])
        rank = int(first["rank"])
        lines = str(first["text"]).splitlines()[-LINES:]
        log = log_paths(folder, job, rank)[1]
        return Failure(rank, "\n".join(lines), log, bool(first.get("user_error")))
    lines = [line for line in batch.splitlines() if line.strip()][-LINES:]
    return Failure(None, "\n".join(lines) or "no rank left a word", own)


def log_paths(folder: Path, job: str, rank: int) -> tuple[Path, Path]:
    """Standard output and standard error of one rank."""
    return folder / f"{job}_{rank}_log.out", folder / f"{job}_{rank}_log.err"


def _tail(path: Path, size: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
