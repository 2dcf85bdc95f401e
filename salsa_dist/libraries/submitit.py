"""submitit's sbatch scripts: shown without Slurm, rewritten before they are submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string


class RewritingExecutor(SlurmExecutor):
    """SlurmExecutor that can also be made where there is no Slurm, and whose script is `rewrite`'s.

    Assumes that submitit makes the text of each submission by `_make_submission_file_text`, and that
    what the ranks run is `_submitit_command_str`; `affinity` is asked whether Slurm is there.

    Seen: submitit 1.5.4.
    Else: a dry run fails by an AttributeError, or a job starts that is not requeued.
    Test: test_what_is_submitted_is_the_rewritten_script
    """

    @classmethod
    def affinity(cls) -> int:
        return 2

    def rewrite(self, script: str) -> str:
        """The script that is submitted in place of submitit's own."""
        return script

    def script(self) -> str:
        """What would be submitted."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.rewrite(super()._make_submission_file_text(command, uid))


def sbatch_text(command: str, folder: Path, **parameters: Any) -> str:
    """An sbatch script with a command of our own.

    Assumes that submitit's `_make_sbatch_string` makes a script from the parameters of an executor.

    Seen: submitit 1.5.4.
    Else: an ImportError that names the version, when the launcher starts.
    Test: test_a_script_of_our_own_has_its_options
    """
    text: str = _make_sbatch_string(command, folder, **parameters)
    return text


def task_words(folder: Path) -> list[str]:
    """Words after `python` that run the pickled job of `folder` as one task.

    Assumes that the module `submitit.core._submit` runs a pickled job.

    Seen: submitit 1.5.4.
    Else: no task of a launch on this machine starts; each says that there is no such module.
    Test: test_a_task_runs_the_job_of_a_folder
    """
    return ["-m", "submitit.core._submit", str(folder)]
