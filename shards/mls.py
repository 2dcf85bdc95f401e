"""Recipe: Multilingual LibriSpeech (OpenSLR 94), read books in eight languages, CC BY 4.0.

Source: one language's folder, or one that holds several:

    mls_polish/                                    mls_polish_opus/: .opus, which libsndfile 1.1 reads
    ├── metainfo.txt                               speaker | gender | …
    ├── train/transcripts.txt                      6892_10049_000000 TAB text
    ├── train/audio/6892/10049/6892_10049_000000.flac
    └── dev/, test/                                the same

as in https://www.openslr.org/94 and Lhotse's recipes/mls.py. The splits are the publisher's.
Licence: CC BY 4.0, by the file LICENSE of each language in the publisher's own copy, such as
https://huggingface.co/datasets/facebook/multilingual_librispeech/blob/main/data/mls_polish/LICENSE.
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.utterance import SPLITS, Ask, Corpus, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "CC-BY-4.0"
LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The splits of each language wanted."""
    folders = [source] if (source / "train").is_dir() else sorted(source.glob("mls_*"))
    found = []
    for folder in folders:
        language = LANGUAGES.get(folder.name.removeprefix("mls_").removesuffix("_opus"))
        if language is None or not ask.wants(language):
            continue
        tables = [folder / split / "transcripts.txt" for split in SPLITS]
        if missing := [str(table) for table in tables if not table.is_file()]:
            raise UserError(f"{', '.join(missing)} is missing: is {folder} unpacked whole?")
        gender = genders(folder / "metainfo.txt")
        for split, table in zip(SPLITS, tables, strict=True):
            for number, line in lines(table):
                name, tab, text = line.strip("\r\n").partition("\t")
                parts = name.split("_")
                if not tab or len(parts) != 3:
                    raise UserError(
                        f"{table}, line {number}: not SPEAKER_BOOK_NUMBER, a tab and a text"
                    )
                home = folder / split / "audio" / parts[0] / parts[1]
                audio = next((p for p in home.glob(f"{name}.*")), home / f"{name}.flac")
                extra = {
                    "book": parts[1],
                    **({"gender": gender[parts[0]]} if parts[0] in gender else {}),
                }
                found.append(
                    Utterance(
                        key=key(name),
                        audio=audio,
                        text=text,
                        language=language,
                        speaker=parts[0],
                        split=split,
                        table=table,
                        line=number,
                        extra=extra,
                    )
                )
    if not found:
        raise UserError(f"{source} holds no mls_LANGUAGE/train/transcripts.txt: name an unpacked MLS")
    return Corpus(found, LICENCE, "Multilingual LibriSpeech, OpenSLR 94")


def genders(table: Path) -> dict[str, str]:
    """M or F by speaker, of metainfo.txt where it is there."""
    rows = (line.split("|") for _, line in lines(table)) if table.is_file() else ()
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1 and row[0].strip().isdigit()}
