"""The progress of a run, from its folder. A job that is started again must add to it.

    RUN/state/…/step-….safetensors     training: the newest state's step, per folder
    RUN/adapters/NAME/                 adapters that are done
    RUN/evaluation/*.jsonl             evaluation: transcripts
    RUN/.FORM.settings.json            of a transcription's --out folder: then each result in RUN

No torch here: whether a job is started again must be decided quickly, and where that doesn't work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from salsa_dist.run.folder import RunFolder


class Progress(NamedTuple):
    """Finished steps, adapters and transcripts on disk."""

    step: int
    adapters: int
    transcripts: int


def progress(run: Path) -> Progress:
    """The progress of `run`."""
    folder = RunFolder(run)
    newest: dict[Path, int] = {}
    for state in folder.state.rglob("step-*.safetensors"):
        step = int(state.stem.removeprefix("step-"))
        newest[state.parent] = max(step, newest.get(state.parent, 0))
    adapters = sum(path.is_dir() for path in folder.adapters.glob("[!.]*"))
    lines = [path.read_bytes().count(b"\n") for path in folder.transcripts()]
    return Progress(sum(newest.values()), adapters, sum(lines) + _results(run))


def _results(run: Path) -> int:
    """Files that `salsa-dist transcribe --out` has written."""
    if not any(run.glob(".*.settings.json")):
        return 0
    count = 0
    for folder, folders, files in os.walk(run):
        if Path(folder) == run:
            folders[:] = [name for name in folders if name not in RunFolder.FOLDERS]
        count += sum(name.endswith((".txt", ".json", ".srt", ".vtt")) for name in files)
    return count
