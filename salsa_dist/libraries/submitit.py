"""submitit's sbatch scripts: printed without Slurm, and rewritten before they are submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string


class RewritingExecutor(SlurmExecutor):
    """A SlurmExecutor that works without Slurm too, and submits the script returned by `rewrite`.

    Assumes that `_make_submission_file_text` returns the text of each submission, that
    `_submitit_command_str` is the command of the ranks, and that `affinity` tells whether there is
    Slurm.

    Seen: submitit 1.5.4.
    Else: a dry run ends with an AttributeError, or a job starts that is not requeued.
    Test: test_what_is_submitted_is_the_rewritten_script
    """

    @classmethod
    def affinity(cls) -> int:
        return 2

    def rewrite(self, script: str) -> str:
        """The script to submit instead of submitit's own `script`."""
        return script

    def script(self) -> str:
        """The script that would be submitted."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.rewrite(super()._make_submission_file_text(command, uid))


def sbatch_text(command: str, folder: Path, **parameters: Any) -> str:
    """An sbatch script with our own command.

    Assumes that submitit's `_make_sbatch_string` makes a script from the parameters of an executor.

    Seen: submitit 1.5.4.
    Else: an ImportError with the version, when the launcher starts.
    Test: test_a_script_of_our_own_has_its_options
    """
    text: str = _make_sbatch_string(command, folder, **parameters)
    return text


def task_words(folder: Path) -> list[str]:
    """The arguments of `python` that run the pickled job in `folder` as one task.

    Assumes that the module `submitit.core._submit` runs a pickled job.

    Seen: submitit 1.5.4.
    Else: no task of a launch on this machine starts; each prints that there is no such module.
    Test: test_a_task_runs_the_job_of_a_folder
    """
    return ["-m", "submitit.core._submit", str(folder)]
