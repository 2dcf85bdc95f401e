"""`shards stats`: counts and durations of a folder of shards, from its index only.

rows(index) ──► [{"language", "split", "shards", "samples", "hours", "mean_s", "p5_s", "p50_s",
                  "p95_s", "longest_s", "megabytes"}]        a row per language and split
counts(index) ─► {"dropped": {"en": {"no text": 3}}, "touched": {"en": {"noises": 41}},
                  "marked": {"en": {"without speech": 20}}}                               utterances
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from salsa_dist.columns import aligned
from salsa_dist.data.index import Shard, ShardIndex


def rows(index: ShardIndex) -> list[dict[str, Any]]:
    """Counts, hours, seconds and megabytes of each language and split."""
    groups: dict[tuple[str, str], list[Shard]] = {}
    for shard in index.shards:
        groups.setdefault((shard.language, shard.split), []).append(shard)
    found = []
    for (language, split), shards in sorted(groups.items()):
        seconds = np.array([entry.seconds for shard in shards for entry in shard.entries])
        low, middle, high = np.percentile(seconds, [5, 50, 95])
        found.append(
            {
                "language": language,
                "split": split,
                "shards": len(shards),
                "samples": len(seconds),
                "hours": round(float(seconds.sum()) / 3600, 4),
                "mean_s": round(float(seconds.mean()), 3),
                "p5_s": round(float(low), 3),
                "p50_s": round(float(middle), 3),
                "p95_s": round(float(high), 3),
                "longest_s": round(float(seconds.max()), 3),
                "megabytes": round(sum(shard.bytes for shard in shards) / 1e6, 3),
            }
        )
    return found


def counts(index: ShardIndex) -> dict[str, dict[str, dict[str, int]]]:
    """Utterances of each language that were dropped, by reason; that a rule for texts changed; and that
    have no speech, or a weight of their own."""
    return {name: index.recipe.get(name, {}) for name in _COUNTED}


def said(index: ShardIndex) -> str:
    """`rows` as a table that fits 80 columns, and below it `counts`."""
    heads = [name.removesuffix("_s") if name != "megabytes" else "MB" for name in _SHOWN]
    lines = [heads, *([_shown(name, row[name]) for name in _SHOWN] for row in rows(index))]
    table = aligned(lines, left=2)
    parts = [str(index.folder), *(table if len(table[0]) <= WIDTH else _grouped(lines))]
    for name, of_languages in counts(index).items():
        for language, own in sorted(of_languages.items()):
            counted = ", ".join(f"{n} {why}" for why, n in own.items()) or "nothing"
            text = f"{_COUNTED[name]} in {language}: {counted}"
            parts += textwrap.wrap(
                text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
    return "\n".join(parts)


def _grouped(lines: list[list[str]]) -> list[str]:
    """The table with each language on its own line, above its splits."""
    head, *others = ("  " + line for line in aligned([line[1:] for line in lines], left=1))
    parts, language = [head], None
    for (own, *_), line in zip(lines[1:], others, strict=True):
        if own != language:
            parts.append(own)
        language = own
        parts.append(line)
    return parts


WIDTH = 80  # columns of a terminal
_COUNTED = {"dropped": "dropped", "touched": "texts changed", "marked": "marked"}
_SHOWN = ["language", "split", "shards", "samples", "hours", "p5_s", "p50_s", "p95_s", "longest_s"]
_SHOWN.append("megabytes")


def _shown(name: str, value: Any) -> str:
    if name.endswith("_s"):
        # Percentiles of long recordings in whole seconds, or three of them would not fit.
        whole = value >= 1000 and name != "longest_s"
        return f"{value:.0f}" if whole else f"{value:.1f}"
    if name in ("hours", "megabytes"):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return str(value)
