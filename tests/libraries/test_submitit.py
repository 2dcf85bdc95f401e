"""What salsa_dist/libraries/submitit.py assumes of the installed submitit; Slurm is a script here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from salsa_dist.libraries import submitit as library


class Marked(library.RewritingExecutor):
    def rewrite(self, script: str) -> str:
        return script + "\n# rewritten\n"


@pytest.fixture
def executor(tmp_path: Path) -> Marked:
    executor = Marked(tmp_path / "logs" / "%j")
    executor.update_parameters(nodes=2, time=5, setup=["export A=1"])
    return executor


def test_what_is_submitted_is_the_rewritten_script(
    executor: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/submitted\necho Submitted batch job 7\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    assert executor.submit(print, "hello").job_id == "7"
    submitted = (tmp_path / "submitted").read_text(encoding="utf-8")
    for text in (submitted, executor.script()):
        assert "# rewritten" in text
        assert "#SBATCH --nodes=2" in text
        assert "srun" in text
        assert "export A=1" in text


def test_a_script_of_our_own_has_its_options(tmp_path: Path) -> None:
    text = library.sbatch_text("hostname", tmp_path, nodes=3, use_srun=False, map_count=4)
    assert "#SBATCH --nodes=3" in text
    assert "#SBATCH --array=0-3" in text
    assert text.rstrip().endswith("hostname")


def test_a_task_runs_the_job_of_a_folder(tmp_path: Path) -> None:
    flag, module, folder = library.task_words(tmp_path)
    assert (flag, folder) == ("-m", str(tmp_path))
    found = importlib.util.find_spec(module)
    assert found is not None
    assert "__main__" in Path(found.origin or "").read_text(encoding="utf-8")
