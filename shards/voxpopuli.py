"""Recipe: VoxPopuli's transcribed speech, European Parliament, 16 languages; data CC0.

Source: `transcribed_data` as the publisher's get_asr_data.py leaves it, or one language in it:

    transcribed_data/de/
    ├── asr_train.tsv, asr_dev.tsv, asr_test.tsv
    └── 2009/20090112-0900-PLENARY-3-de_20090112-17:02:20_0.ogg      by the year in its id

    id  raw_text  normalized_text  speaker_id  split  gender  …       between tabs, without quotes

as in https://github.com/facebookresearch/voxpopuli (README.md; voxpopuli/get_asr_data.py). The text is
`normalized_text`; with `--column text=raw_text` it is the other, which may be empty. Speakers in two of
the publisher's splits are found by `shards lint`. Licence: the same README.md, "License".
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.utterance import SPLITS, Ask, Corpus, Drops, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "CC0-1.0 (with the European Parliament's legal notice)"
TEXTS = ("normalized_text", "raw_text")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The splits of each language wanted."""
    column = ask.columns.get("text", TEXTS[0])
    if column not in TEXTS:
        raise UserError(f"--column text={column}: VoxPopuli has {' and '.join(TEXTS)}")
    there = [path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}asr_*.tsv")]
    folders = sorted({p.parent for p in there if p.stem.removeprefix("asr_") in SPLITS})
    tables = [f / f"asr_{split}.tsv" for f in folders if ask.wants(f.name) for split in SPLITS]
    if missing := [str(table) for table in tables if not table.is_file()]:
        raise UserError(f"{', '.join(missing)} is missing: run get_asr_data.py again")
    found: list[Utterance] = []
    drops = Drops()
    for table in tables:
        language, split = table.parent.name, table.stem.removeprefix("asr_")
        names: list[str] = []
        for number, line in lines(table):
            cells = line.rstrip("\r\n").split("\t")
            if not names:
                names = cells
                if lacks := [name for name in ("id", column, "speaker_id") if name not in names]:
                    raise UserError(f"{table} has no column {', '.join(lacks)}: is it VoxPopuli's?")
                continue
            if len(cells) != len(names):
                raise UserError(f"{table}, line {number}: {len(cells)} cells for {len(names)} columns")
            row = dict(zip(names, cells, strict=True))
            name, text = row["id"], row[column].strip()
            if "/" in name or name.startswith("."):
                raise UserError(f"{table}, line {number}: {name!r} is no name of a recording")
            if not text:
                drops.add(language, f"empty {column}", f"{table}, line {number}")
                continue
            found.append(
                Utterance(
                    key=key(name),
                    audio=table.parent / name[:4] / f"{name}.ogg",
                    text=text,
                    language=language,
                    speaker=row["speaker_id"] if row["speaker_id"] not in ("", "None") else None,
                    split=split,
                    table=table,
                    line=number,
                    extra={"gender": row["gender"]} if row.get("gender") else {},
                )
            )
    if not found:
        raise UserError(f"{source} holds no LANGUAGE/asr_train.tsv: name VoxPopuli's transcribed_data")
    rule = f"VoxPopuli's column {column}"
    return Corpus(
        found, LICENCE, "VoxPopuli", text_rules=(rule,), dropped=drops.counts, first=drops.first
    )
