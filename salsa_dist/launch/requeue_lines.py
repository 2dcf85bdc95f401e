"""The end of the batch script: if ranks failed, the job asks Slurm to start it again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def with_requeue(script: str, run: Path, logs: Path, tries: int) -> str:
    """`script`, which ends with srun, and lines for a failure of srun; see salsa_dist/requeue.py.

    Args:
        script: an sbatch script.
        run: folder of the run.
        logs: folder of the job's logs, with a `%j`: the job's id, for a task of an array `17_2`.
        tries: most attempts in a row without a new checkpoint; 0: a failed job stays failed.
    """
    if not tries:
        return script
    words = shlex.join([sys.executable, "-m", "salsa_dist.requeue", str(run.absolute())])
    folder = '"$job"'.join(shlex.quote(part) for part in str(logs).split("%j"))
    return (
        f"{script.rstrip()}\n"
        "status=$?\n"
        # The plain id of an array's last task is that of the whole array.
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}\n"
        'export SALSA_JOB="${job:=$SLURM_JOB_ID}"\n'
        f'[ "$status" = 0 ] || {words} {folder} "$status" {tries}\n'
        'exit "$status"\n'
    )
