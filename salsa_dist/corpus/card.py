"""The dataset card, README.md of a folder of shards: content, source, and changes.

table (language, split: shards, samples, hours, speakers) ─ licence ─ text rules ─ splits ─ dropped
─ a histogram of durations per language, in characters: the same bytes wherever it is made
"""

from __future__ import annotations

import math
from typing import Any

from salsa_dist.corpus.stats import rows
from salsa_dist.data.index import ShardIndex

BINS = 12
WIDTH = 40  # characters of the longest bar


def write(index: ShardIndex) -> str:
    """The card's Markdown."""
    facts = index.recipe
    parts = [
        f"# {index.name}",
        f"Speech with transcripts in WebDataset tar shards, made by salsa-dist's recipe `{index.name}` "
        f"with seed {index.seed}.",
        f"- Source: {facts['source']}\n- Licence: {facts['licence']}\n- Audio: {facts['audio']}\n"
        f"- Hash of the list of shards: `{index.hash}`",
        "## What it holds",
        _table(index),
        "## Texts",
        "\n".join(f"- {rule}" for rule in _listed(facts["text"])),
        *_touched(facts.get("touched", {})),
        "## Splits",
        "\n".join(f"- {line}" for line in _said(facts["splits"])),
        "## Left out",
        "\n".join(f"- {line}" for line in _dropped(facts["dropped"])),
        "## Durations",
        *(_histogram(language, seconds) for language, seconds in _seconds(index).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(index: ShardIndex) -> str:
    speakers = index.recipe["speakers"]
    lines = ["| language | split | shards | samples | hours | mean s | longest s | speakers |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows(index):
        known = speakers.get(row["language"], {}).get(row["split"], 0) or "not known"
        cells = [row[k] for k in ("language", "split", "shards", "samples", "hours", "mean_s")]
        cells += [row["longest_s"], known]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _listed(rules: list[str] | str) -> list[str]:
    return [rules] if isinstance(rules, str) else rules


def _said(how: dict[str, str] | str) -> list[str]:
    if isinstance(how, str):
        return [how]
    ways: dict[str, list[str]] = {}
    for language, way in how.items():
        ways.setdefault(way, []).append(language)
    return [f"{way}: {', '.join(languages)}" for way, languages in ways.items()]


def _dropped(dropped: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{language}: {line}" for language, line in _counted(dropped)]


def _counted(counts: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (language, ", ".join(f"{n} {what}" for what, n in own.items()) or "nothing")
        for language, own in counts.items()
    ]


def _touched(touched: dict[str, dict[str, int]]) -> list[str]:
    lines = [f"- {language}: {line}" for language, line in _counted(touched)]
    return ["Utterances that a rule changed:", "\n".join(lines)] if lines else []


def _seconds(index: ShardIndex) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}
    for shard in index.shards:
        seconds.setdefault(shard.language, []).extend(entry.seconds for entry in shard.entries)
    return dict(sorted(seconds.items()))


def _histogram(language: str, seconds: list[float]) -> str:
    # Bins of 1, 2 or 5 times a power of ten, so that their bounds are read easily.
    least = max(seconds) / BINS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))
    counts = [0] * (int(max(seconds) / step) + 1)
    for value in seconds:
        counts[int(value / step)] += 1
    lines = [f"### {language}", "", "```"]
    for i, count in enumerate(counts):
        bar = "█" * math.ceil(WIDTH * count / max(counts))
        lines.append(f"{i * step:7.4g} to {(i + 1) * step:7.4g} s  {bar} {count}".rstrip())
    return "\n".join([*lines, "```"])
