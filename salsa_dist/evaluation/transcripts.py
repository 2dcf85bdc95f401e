"""The transcripts of a run, one per line: schema, readers, and the names of decoding without an
adapter.

    RUN/evaluation/window30-rank0.jsonl
    {"schema": …, "key": …, "language": …, "method": "salsa", "adapter": "bg" or null, "hypothesis": …}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from salsa_dist import jsonl
from salsa_dist.data.shards import TEXT_FIELDS
from salsa_dist.json_file import Record, parsed
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/hypotheses/1"
ZERO_SHOT = "zero-shot"
BARE = "no-adapters"
"""By the base with no adapters beside it, not even ones that are off."""
# Facts of a sample that a transcript's line has elsewhere, or that say nothing of the speech.
_NO_FIELDS = {*TEXT_FIELDS, "language", "seconds", "licence"}


class Hypothesis(Record):
    key: str
    language: str
    split: str
    method: str
    adapter: str | None
    window_s: float
    reference: str
    hypothesis: str
    finished: bool
    scale: float = 1.0
    """What the adapter's vectors were multiplied by."""
    fields: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """What else the shards say of the clip."""

    @property
    def speaker(self) -> str | None:
        known = self.fields.get("speaker")
        return None if known is None else str(known)


def path_of(run: Path, window_s: float, rank: int) -> Path:
    """The file that one rank adds to."""
    return RunFolder(run).evaluation / f"window{window_s:g}-rank{rank}.jsonl"


def read(run: Path) -> Iterator[dict[str, Any]]:
    """All transcripts so far. If a clip has two, the last one is used."""
    for path in RunFolder(run).transcripts():
        yield from jsonl.read(path, SCHEMA, _advice(run))


def hypotheses(run: Path) -> list[Hypothesis]:
    """The last transcript of each clip, checked, in an order that no rank or resume changes.

    Raises:
        UserError: a line is damaged, half of one at the end too, or of another schema.
    """
    newest: dict[tuple[Any, ...], Hypothesis] = {}
    for path in RunFolder(run).transcripts():
        for where, tree in jsonl.lines(path, SCHEMA, _advice(run), whole=True):
            h = parsed(Hypothesis, tree, where, _advice(run))
            place = h.language, h.split, h.method, h.adapter or "", h.window_s, h.scale, h.key
            newest[place] = h
    return [newest[place] for place in sorted(newest)]


def fields_of(facts: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Fields by which results can be grouped; `extra` has further facts from a recipe."""
    extra = facts.get("extra")
    every = {**facts, **(extra if isinstance(extra, dict) else {})}
    return {
        name: value
        for name, value in every.items()
        if name not in _NO_FIELDS and isinstance(value, str | int | float)
    }


def _advice(run: Path) -> str:
    return f"make it again with `{RunFolder(run).command('evaluate')}`"
