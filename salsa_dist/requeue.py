"""Whether a job that failed is started again. On Slurm the last line of its batch script asks:

    python -m salsa_dist.requeue RUN LOGS STATUS TRIES

    RUN                                 how far it has come, see run/progress.py
    LOGS/JOB_RANK_failure.json          what stopped each rank
    LOGS/tries.jsonl                    one line per failed attempt: {"time", "status", and how far}

`SALSA_JOB` is the job's id, of an array's task the one with its number, such as `17_2`.

A rank that dies ends the others, and the job. Only the next attempt can tell a broken node from a
defect, so the job is requeued until `TRIES` attempts in a row ended with no new checkpoint, adapter or
transcript. A user's mistake is not tried again. No torch here: it must be quick
and work when that doesn't.

Slurm's controller may be away just then: it is restarted, or another machine takes over. It is asked
again for `ANSWER_S`, since nobody else would start the job again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from salsa_dist import jsonl
from salsa_dist.log import log
from salsa_dist.run.failure_file import failures
from salsa_dist.run.progress import progress

NAME = "tries.jsonl"
ANSWER_S = 900.0  # for so long the controller may be away; the nodes are held meanwhile
PAUSE_S = 10.0  # scontrol itself tries for a while, longer than this


def verdict(run: Path, logs: Path, status: int, tries: int) -> tuple[bool, str]:
    """Note a failed attempt in `logs`; whether to try again, and why, in words for the log.

    Args:
        run: folder of the run.
        logs: folder of this job's logs.
        status: what the ranks' srun ended with.
        tries: most attempts in a row without progress.
    """
    mistakes = [f["text"] for f in failures(logs) if f.get("user_error")]
    if mistakes:
        return False, f"not started again, since another attempt would end the same: {mistakes[0]}"
    now = progress(run)._asdict()
    with jsonl.appending(logs / NAME) as file:
        file.write(json.dumps({"time": round(time.time(), 3), "status": status, **now}) + "\n")
    lines = [json.loads(line) for line in (logs / NAME).read_text().splitlines()]
    stuck = [*(now.items() <= line.items() for line in reversed(lines)), False].index(False)
    if stuck >= tries:
        return False, (
            f"not started again: {stuck} attempts in a row ended at step {now['step']} without a new "
            f"checkpoint, adapter or transcript; see the logs in {logs}, then launch again to go on "
            "from there"
        )
    return (
        True,
        f"the ranks ended with status {status} after step {now['step']}: they are started again",
    )


def _is_this_start(job: str) -> bool:
    """Whether Slurm still runs the start of `job` that this process is of.

    If not it was cancelled, preempted, or requeued already by whatever stopped the ranks; seen from a
    node that was cut off, it may run elsewhere by now.
    """
    facts = dict(word.split("=", 1) for word in _shown(job).split() if "=" in word)
    own = os.environ.get("SLURM_RESTART_COUNT") or "0"
    return (facts.get("JobState"), facts.get("Restarts")) == ("RUNNING", own)


def _shown(job: str) -> str:
    """What Slurm shows of `job`; empty if it knows no such job, or has not answered for `ANSWER_S`."""
    until = time.monotonic() + ANSWER_S
    told = False
    while True:
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True
        )
        if done.returncode == 0:
            return done.stdout
        said = " ".join(done.stderr.split())
        if "Invalid job id" in said:
            return ""
        if time.monotonic() > until:
            log.error(
                f"salsa-dist: not started again, since Slurm does not answer ({said}): launch again to "
                "go on from what is there"
            )
            return ""
        if not told:
            told = True
            log.warning(
                f"salsa-dist: Slurm does not answer ({said}); it is asked again for "
                f"{ANSWER_S / 60:.0f} minutes"
            )
        time.sleep(PAUSE_S)


def _requeue(job: str) -> int:
    """Requeue `job`. A refusal counts once Slurm answers: if it was away, it is asked a second time."""
    for _ in range(2):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode == 0 or not _is_this_start(job):
            return 0
    log.error(
        f"salsa-dist: Slurm does not requeue job {job} ({' '.join(done.stderr.split())}): launch again "
        "to go on from what is there"
    )
    return done.returncode


def main(arguments: list[str]) -> int:
    run, logs, status, tries = arguments
    job = os.environ["SALSA_JOB"]
    if not job:  # the batch script was run by hand, outside of Slurm
        return 0
    if not _is_this_start(job):
        return 0
    again, why = verdict(Path(run), Path(logs), int(status), int(tries))
    log.warning(f"salsa-dist: {why}")
    return _requeue(job) if again else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
