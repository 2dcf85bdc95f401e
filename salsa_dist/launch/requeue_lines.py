"""The end of the batch script: if ranks failed, the job asks Slurm to start it again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def with_requeue(script: str, run: Path, logs: Path, tries: int, code: str | None) -> str:
    """`script`, which ends with srun, and lines for a failure of srun; see salsa_dist/requeue.py.

    Args:
        script: an sbatch script.
        run: folder of the run.
        logs: folder of the job's logs, with a `%j`: the job's id, for a task of an array `17_2`.
        tries: most attempts in a row without a new checkpoint; 0: a failed job stays failed.
        code: folder with the salsa_dist to run, which the ranks have too; None: the one that is
            installed.
    """
    if not tries:
        return script
    words = shlex.join([sys.executable, "-m", "salsa_dist.requeue", str(run.absolute())])
    folder = '"$job"'.join(shlex.quote(part) for part in str(logs).split("%j"))
    ask = f'{words} {folder} "$status" {tries}'
    if code is not None:
        # `python -m` looks into the current folder first, and that of the launch may hold a source that
        # has changed since.
        ask = f"(cd {shlex.quote(code)} && {ask})"
    return (
        # Not a line of its own: a `set -e` among the setup commands would end the script before it.
        f"{script.rstrip()} && status=0 || status=$?\n"
        # The plain id of an array's last task is that of the whole array.
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}\n"
        'export SALSA_JOB="${job:=$SLURM_JOB_ID}"\n'
        f'[ "$status" = 0 ] || {ask}\n'
        'exit "$status"\n'
    )
