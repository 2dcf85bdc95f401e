"""Recipe: Mozilla Common Voice, scripted speech, as its releases unpack.

Source: the release's folder, one language in it, or a folder of several:

    cv-corpus-17.0-2024-03-15/
    └── bg/
        ├── clips/common_voice_bg_123.mp3
        ├── train.tsv, dev.tsv, test.tsv        no sentence is in two of them
        └── validated.tsv                       these and more; also other.tsv, invalidated.tsv, …

    client_id  path  sentence_id  sentence  sentence_domain  up_votes  down_votes  age  gender  accents
    variant  locale  segment

Folders and columns are those of "Archive Structure" and "TSV Fields" in the README of
https://github.com/common-voice/cv-dataset (datasets/scripted-speech). Which columns there are differs
between releases, so they are found by the header. That no sentence is in two splits says the README of
https://github.com/common-voice/CorporaCreator, which makes them.

The splits are the publisher's. A language without them has validated.tsv dealt by speaker. `path` is
the name of a file in clips/ (in old releases without .mp3); `client_id` is the speaker.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.utterance import SPLITS, Ask, Corpus, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "CC0-1.0"
NEEDED = ("client_id", "path", "sentence")
EXTRA = ("age", "gender", "accents", "accent", "variant", "segment")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The publisher's splits of each language wanted, else what was validated."""
    folders = [source] if (source / "clips").is_dir() else sorted(p.parent for p in _clips(source))
    if not folders:
        raise UserError(f"{source} holds no LANGUAGE/clips: name an unpacked Common Voice release")
    found: list[Utterance] = []
    dropped: dict[str, Counter[str]] = {}
    for folder in folders:
        if not ask.wants(folder.name):
            continue
        counts = dropped.setdefault(folder.name, Counter())
        own = {split: rows(folder / f"{split}.tsv") for split in SPLITS}
        if any(own.values()):
            for split, of_split in own.items():
                found += utterances(folder, of_split, split, counts)
        else:
            found += utterances(folder, rows(folder / "validated.tsv"), None, counts)
    release = next((p.name for p in (source, *source.parents) if p.name.startswith("cv-corpus")), "")
    return Corpus(found, LICENCE, f"Common Voice {release}".strip(), dropped=dropped)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a release's table; none where it is missing. Quotation marks mean nothing in it."""
    if not path.is_file():
        return []
    reader = csv.reader((line for _, line in lines(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = next(reader, [])
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}: is it Common Voice's?")
    # An empty last cell may have lost its tab.
    return [dict(zip(names, cells, strict=False)) for cells in reader]


def utterances(
    folder: Path, rows: list[dict[str, str]], split: str | None, dropped: Counter[str]
) -> list[Utterance]:
    """One for each row with a sentence; others are counted in `dropped`."""
    found = []
    for row in rows:
        name, sentence = row.get("path", ""), row.get("sentence", "")
        if not sentence.strip() or not name:
            dropped["no text"] += 1
            continue
        if "/" in name or "\\" in name or name.startswith("."):
            raise UserError(f"{folder}: {name!r} is no name of a file in clips")
        path = folder / "clips" / (name if "." in name else f"{name}.mp3")
        extra = {field: row[field] for field in EXTRA if row.get(field)}
        speaker = row.get("client_id") or None
        stem = key(path.stem)
        found.append(
            Utterance(stem, path, sentence, folder.name, speaker=speaker, split=split, extra=extra)
        )
    return found


def _clips(source: Path) -> list[Path]:
    return [path for path in (*source.glob("*/clips"), *source.glob("*/*/clips")) if path.is_dir()]
