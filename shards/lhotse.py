"""Recipe: cuts of Lhotse, read as the JSON that they are: Lhotse itself is not needed.

Source: cuts.jsonl or cuts.jsonl.gz, or a folder of them (cuts_train.jsonl.gz, cuts_dev.jsonl.gz, …).

    {"type": "MonoCut", "id": …, "start": 0.1, "duration": 9.0, "channel": 0,
     "recording": {"id": …, "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], …},
     "supervisions": [{"id": …, "start": 0.05, "duration": 0.5, "text": …, "language": …, …}]}

as in https://lhotse.readthedocs.io/en/latest/cuts.html and corpus.html: each supervision becomes one
utterance; its start counts from the cut's, the cut's from the recording's. Left out and counted are
mixed and padding cuts, recordings that are no single file, and transformed ones (speed, gain, …): their
audio lies nowhere as a file. A supervision's gender and what is short in its `custom` go along.
Paths are relative to the file of cuts, or else to where the build starts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from salsa_dist.corpus import manifest
from salsa_dist.corpus.utterance import (
    Ask,
    Corpus,
    Drops,
    Utterance,
    key,
    refuse_other_splits,
    split_in,
)
from salsa_dist.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every supervision of every cut."""
    found: list[Utterance] = []
    drops = Drops()
    for file in manifest.files(source, SUFFIXES):
        for row in manifest.json_rows(file):
            try:
                why = unusable(row)
                if why:
                    drops.add(ask.language or "any", why, row.place)
                else:
                    found += utterances(row, ask, drops)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
                raise UserError(f"{row.place}: not a cut of Lhotse ({type(e).__name__}: {e})") from e
    files = {(u.language, u.table.name): u.table for u in found if u.table}
    refuse_other_splits(files, "rename it, or move it elsewhere")
    said = f"Lhotse cuts {source.name}"
    return Corpus(found, "not stated", said, dropped=drops.counts, first=drops.first)


def unusable(row: manifest.Row) -> str | None:
    """Why a cut's audio is not a part of a file; None where it is."""
    cut = row.values
    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
        return f"a {cut['type']}"
    recording = cut["recording"]
    if recording.get("transforms"):
        return "a transformed recording"
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        return "a recording that is no single file"
    return None


def utterances(row: manifest.Row, ask: Ask, drops: Drops) -> list[Utterance]:
    """One for each supervision with a text, within its cut."""
    cut = row.values
    source = cut["recording"]["sources"][0]
    audio = Path(source["source"])
    beside = row.file.parent / audio
    cut_start, cut_end = float(cut["start"]), float(cut["start"]) + float(cut["duration"])
    found = []
    for supervision in cut["supervisions"]:
        language = supervision.get("language") or ask.language
        if not language:
            raise UserError(f"{row.place}: no language: give it with --language")
        if not (supervision.get("text") or "").strip():
            drops.add(language, "no text", row.place)
            continue
        start = cut_start + float(supervision["start"])
        end = min(start + float(supervision["duration"]), cut_end)
        start = max(start, cut_start)
        if not 0 <= start < end < math.inf:
            raise UserError(f"{row.place}: supervision {supervision['id']} lies outside its cut")
        found.append(
            Utterance(
                key=key(str(supervision["id"])),
                audio=beside if beside.exists() or not audio.exists() else audio,
                text=supervision["text"],
                language=language,
                speaker=supervision.get("speaker"),
                split=split_in(row.file.name),
                start=start,
                end=end,
                channel=_channel(cut, supervision, source),
                table=row.file,
                line=row.number,
                extra=manifest.words_and_numbers(
                    {**(supervision.get("custom") or {}), "gender": supervision.get("gender")}
                ),
            )
        )
    return found


def _channel(cut: Any, supervision: Any, source: Any) -> int | None:
    """Which channel of the file is spoken on; None: the mean of several, or the only one.

    In a cut of several channels each supervision says its own, such as the two sides of a call.
    """
    channels = source["channels"]
    for of in (supervision.get("channel"), cut.get("channel")):
        spoken = of[0] if isinstance(of, list) and len(of) == 1 else of
        if len(channels) > 1 and isinstance(spoken, int):
            place: int = channels.index(spoken)
            return place
    return None
