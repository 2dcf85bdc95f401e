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
the name of a file in clips/ (in old releases without .mp3); `client_id` is the speaker. Each release
makes its splits anew (that README, "Use for Machine Learning"): results of two can't be compared.

Licence: CC0-1.0, as on https://huggingface.co/datasets/mozilla-foundation/common_voice_17_0. Releases
are now at https://datacollective.mozillafoundation.org, whose terms forbid to host them elsewhere; some
languages begin to have other licences (https://community.mozilladatacollective.com, "Why can't I
re-host or share Common Voice datasets"): give such a one with --licence.
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus.manifest import cells
from salsa_dist.corpus.utterance import SPLITS, Ask, Corpus, Drops, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "CC0-1.0"
NEEDED = ("client_id", "path", "sentence")
EXTRA = ("age", "gender", "accents", "accent", "variant", "segment")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The publisher's splits of each language wanted, else what was validated."""
    folders = [source] if (source / "clips").is_dir() else _languages(source)
    if not folders:
        raise UserError(f"{source} holds no LANGUAGE/clips: name an unpacked Common Voice release")
    found: list[Utterance] = []
    drops = Drops()
    for folder in folders:
        if not ask.wants(folder.name):
            continue
        if missing := _missing(folder):
            raise UserError(f"{folder} holds no {' and '.join(missing)}: is it unpacked whole?")
        tables = {split: folder / f"{split}.tsv" for split in SPLITS}
        own = [u for split, table in tables.items() for u in utterances(table, split, drops)]
        found += own or utterances(folder / "validated.tsv", None, drops)
    release = next((p.name for p in (source, *source.parents) if p.name.startswith("cv-corpus")), "")
    said = f"Common Voice {release}".strip()
    return Corpus(found, LICENCE, said, dropped=drops.counts, first=drops.first)


def rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a release's table with their lines; none where it is missing. Quotation marks mean
    nothing in it."""
    if not path.is_file():
        return []
    table = cells(path, quoted=False)
    _, names = next(table, (0, []))
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}: is it Common Voice's?")
    # An empty last cell may have lost its tab.
    return [(number, dict(zip(names, row, strict=False))) for number, row in table]


def utterances(table: Path, split: str | None, drops: Drops) -> list[Utterance]:
    """One for each row with a sentence; others are counted in `drops`."""
    folder, language = table.parent, table.parent.name
    found = []
    for number, row in rows(table):
        name, sentence = row.get("path", ""), row.get("sentence", "")
        if not sentence.strip() or not name:
            drops.add(language, "no text", f"{table}, line {number}")
            continue
        if "/" in name or "\\" in name or name.startswith("."):
            raise UserError(f"{table}, line {number}: {name!r} is no name of a file in clips")
        path = folder / "clips" / (name if "." in name else f"{name}.mp3")
        found.append(
            Utterance(
                key=key(path.stem),
                audio=path,
                text=sentence,
                language=language,
                speaker=row.get("client_id") or None,
                split=split,
                table=table,
                line=number,
                extra={field: row[field] for field in EXTRA if row.get(field)},
            )
        )
    return found


def _languages(source: Path) -> list[Path]:
    """The folders, one or two levels down, that hold a part of a language."""
    names = ("clips", "validated.tsv", *(f"{split}.tsv" for split in SPLITS))
    return sorted(
        {p.parent for d in ("*", "*/*") for name in names for p in source.glob(f"{d}/{name}")}
    )


def _missing(folder: Path) -> list[str]:
    """What a language's folder lacks of clips and, where it has one of them, of the three splits."""
    tables = [f"{split}.tsv" for split in SPLITS]
    there = [name for name in tables if (folder / name).is_file()]
    lacks = [name for name in tables if name not in there] if there else []
    return [*([] if (folder / "clips").is_dir() else ["clips"]), *lacks]
