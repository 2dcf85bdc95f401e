"""Recipe: Google's FLEURS, 102 languages, as its repository has it.

Source: https://huggingface.co/datasets/google/fleurs, its `data` folder, or one language in it:

    data/bg_bg/
    ├── train.tsv, dev.tsv, test.tsv
    └── audio/train.tar.gz, dev.tar.gz, test.tar.gz      members train/1234….wav, 16 kHz
         or audio/train/1234….wav, …                      unpacked

    id  file_name  raw_transcription  transcription  characters  num_samples  gender      no header

Layout and columns are those of the repository's own loading script, fleurs.py: its `_DATA_URL` is
`data/{langs}/audio/{split}.tar.gz`, its `_META_URL` `data/{langs}/{split}.tsv` (seen in
https://huggingface.co/datasets/google/fleurs/commit/4fcbd8508d9860d9e906b46935e4a69dbb869f93), and
its `_get_data` unpacks a line into these columns, the fifth without a name. The paper is arXiv
2205.12446. The text is `transcription`, lower case without punctuation; with `--column
text=raw_transcription` it is the other. Languages are called by the first part of their folder's name
(bg_bg: bg), Mandarin (cmn_hans_cn) zh. Speakers are not named; by the dataset card those of train
differ from those of dev and test. Archives are unpacked into a folder beside the shards, only plain
files, only where they belong. Licence: CC BY 4.0, by the same card.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from salsa_dist.corpus.archive import unpack
from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.utterance import SPLITS, Ask, Corpus, Drops, Utterance, key
from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside

LICENCE = "CC-BY-4.0"
TEXTS = ("transcription", "raw_transcription")
COLUMNS = (
    "id",
    "file_name",
    "raw_transcription",
    "transcription",
    "characters",
    "num_samples",
    "gender",
)


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """All three splits of each language wanted."""
    tables = [path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}*.tsv")]
    folders = sorted({path.parent for path in tables if path.stem in SPLITS})
    if not folders:
        raise UserError(f"{source} holds no LANGUAGE/test.tsv: name FLEURS's data folder")
    column = ask.columns.get("text", TEXTS[0])
    if column not in TEXTS:
        raise UserError(f"--column text={column}: FLEURS has {' and '.join(TEXTS)}")
    found: list[Utterance] = []
    drops = Drops()
    for folder in folders:
        language = language_of(folder.name)
        if not ask.wants(language):
            continue
        if missing := [f"{split}.tsv" for split in SPLITS if not (folder / f"{split}.tsv").is_file()]:
            raise UserError(f"{folder} holds no {' and '.join(missing)}: is it fetched whole?")
        for split in SPLITS:
            audio = audio_folder(folder, split, scratch)
            found += utterances(folder / f"{split}.tsv", audio, language, split, column, drops)
    rule = f"FLEURS's column {column}"
    return Corpus(found, LICENCE, "FLEURS", text_rules=(rule,), dropped=drops.counts, first=drops.first)


def language_of(folder: str) -> str:
    """`bg_bg` is bg; Mandarin goes by the code that models know."""
    first = folder.split("_")[0]
    return "zh" if first == "cmn" else first


def audio_folder(folder: Path, split: str, scratch: Path) -> Path:
    """Where the clips of a split lie, unpacked if need be."""
    there = folder / "audio" / split
    archive = folder / "audio" / f"{split}.tar.gz"
    if there.is_dir() or not archive.is_file():
        return there
    target = scratch / folder.name / split
    if not target.is_dir():
        with made_beside(target) as unpacked:
            unpack(archive, unpacked, lambda name: PurePosixPath(name).suffix == ".wav")
    return target / split


def utterances(
    table: Path, audio: Path, language: str, split: str, column: str, drops: Drops
) -> list[Utterance]:
    """One a row; rows without a text are counted in `drops`."""
    found = []
    for number, line in lines(table):
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) != len(COLUMNS):
            raise UserError(f"{table}, line {number}: {len(cells)} cells, FLEURS has {len(COLUMNS)}")
        row = dict(zip(COLUMNS, cells, strict=True))
        name = row["file_name"]
        if "/" in name or "\\" in name or name.startswith("."):
            raise UserError(f"{table}, line {number}: {name!r} is no name of a file in {audio}")
        if not row[column].strip():
            drops.add(language, "no text", f"{table}, line {number}")
            continue
        found.append(
            Utterance(
                key=key(f"{split}/{Path(name).stem}"),
                audio=audio / name,
                text=row[column],
                language=language,
                split=split,
                table=table,
                line=number,
                extra={"sentence": row["id"], "gender": row["gender"].lower()},
            )
        )
    return found
