"""The transcripts of a run, one a line: the schema, who reads them, and the words for what was decoded
without an adapter.

    RUN/evaluation/window30-rank0.jsonl
    {"schema": …, "key": …, "language": …, "method": "salsa", "adapter": "bg" or null, "hypothesis": …}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salsa_dist import jsonl
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/hypotheses/1"
ZERO_SHOT = "zero-shot"
BARE = "no-adapters"
"""By the base with no adapters beside it, not even ones that are off."""


def path_of(run: Path, window_s: float, rank: int) -> Path:
    """The file that one rank adds to."""
    return RunFolder(run).evaluation / f"window{window_s:g}-rank{rank}.jsonl"


def read(run: Path) -> Iterator[dict[str, Any]]:
    """Every transcript so far; of a clip that has two the last counts."""
    for path in RunFolder(run).transcripts():
        yield from jsonl.read(path, SCHEMA)
