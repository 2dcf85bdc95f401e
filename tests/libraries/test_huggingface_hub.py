"""What salsa_dist/libraries/huggingface_hub.py assumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny import make_base

from salsa_dist.libraries import huggingface_hub as library


def test_the_commit_of_a_hub_name_is_known(tmp_path: Path) -> None:
    """A hub's cache made by hand, read by a process that takes it for the user's and has no network."""
    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--some--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    make_base(repository / "snapshots" / commit)
    other = commit[::-1]
    (repository / "refs" / "v2").write_text(other)
    make_base(repository / "snapshots" / other, seed=1)
    code = (
        "from salsa_dist.speech_llms.load import load_speech_llm; "
        "print(*(load_speech_llm('some/base', revision=r).revision for r in (None, 'v2')))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [f"{commit} {other}"], done.stderr


def test_a_file_that_is_not_there_is_none(tiny_base: Path) -> None:
    from transformers.utils import cached_file

    assert library.file_in(str(tiny_base), "config.json", None) == tiny_base / "config.json"
    assert library.file_in(str(tiny_base), "adapter_config.json", None) is None
    options = {"_raise_exceptions_for_missing_entries": False}
    assert cached_file(str(tiny_base), "adapter_config.json", **options) is None
