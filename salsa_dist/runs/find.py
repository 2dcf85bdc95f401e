"""Lists runs, and finds a run by its name.

runs/                      --root
├── demo/                  run "demo": it has events.jsonl, or logs/<job>/launch.json
└── sweep/                 a folder of runs
    └── bg-lr3/            run "sweep/bg-lr3"
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from salsa_dist.errors import UserError
from salsa_dist.run.folder import RunFolder
from salsa_dist.runs.launches import any_launch

DEPTH = 4


def is_run(folder: Path) -> bool:
    return RunFolder(folder).events.is_file() or any_launch(folder)


def runs(root: Path) -> list[Path]:
    """The folders of all runs below `root`, by name."""
    return sorted(_below(root, DEPTH))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in entries:
        if entry.name in RunFolder.FOLDERS or entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _below(path, depth - 1)


def find(name: str, root: Path) -> Path:
    """The run called `name` below `root`, or the folder that `name` is.

    Raises:
        UserError: there is none.
    """
    for folder in (root / name, Path(name)):
        if is_run(folder):
            return folder
    known = [str(path.relative_to(root)) for path in runs(root)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`salsa-dist runs list` shows what there is"
    raise UserError(f"no run {name!r} in {root}; {hint}")
