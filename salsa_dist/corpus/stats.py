"""`shards stats`: how much of what lies in a folder of shards, by its index alone.

rows(index) ──► [{"language", "split", "shards", "samples", "hours", "mean_s", "p5_s", "p50_s",
                  "p95_s", "longest_s", "megabytes"}]        a row a language and split
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

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


def table(index: ShardIndex) -> Table:
    """`rows` for a terminal."""
    found = rows(index)
    shown = Table(*(name.removesuffix("_s") for name in found[0]), title=str(index.folder))
    for row in found:
        shown.add_row(*(str(value) for value in row.values()))
    return shown
