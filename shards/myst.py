"""Recipe: MyST, My Science Tutor Children's Conversational Speech (LDC2021S05), grades 3 to 5.

Source: the release's folder, its `data` folder, or one that holds them:

    myst_child_conv_speech/data/
    └── train/                                              development/, test/
        └── 002004/                                         the student
            └── myst_002004_2013-11-04_09-58-45_MX_1.1/     the session
                ├── myst_002004_…_MX_1.1_001.flac           16 kHz, mono
                └── myst_002004_…_MX_1.1_001.trn            its text; more than half have none

Folders and partitions (no student is in two) as in
https://boulderlearning.com/products/details-of-the-myst-corpus and
https://catalog.ldc.upenn.edu/docs/LDC2021S05/MyST-corpus-README.txt; `myst_child_conv_speech`, the
three partitions' names and .trn as ESPnet's egs2/myst_ogi_cmu_kids reads them. For a copy on a model
hub see recipe `hub`. Licence: https://catalog.ldc.upenn.edu/LDC2021S05.

The module of a session (MX, …) goes along. Texts: `salsa_dist/corpus/texts/myst.py`.
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus.manifest import read_text
from salsa_dist.corpus.texts import Texts, myst
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key
from salsa_dist.errors import UserError

PARTITIONS = {"train": "train", "development": "dev", "test": "test"}


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every transcribed utterance of the three partitions."""
    places = (source, *(source / name for name in ("data", "myst_child_conv_speech/data")))
    data = next((p for p in places if any((p / name).is_dir() for name in PARTITIONS)), None)
    if data is None:
        raise UserError(f"{source} holds no train, development and test: name MyST's data folder")
    if missing := [name for name in PARTITIONS if not (data / name).is_dir()]:
        raise UserError(f"{data} holds no {' and '.join(missing)}: is it unpacked whole?")
    texts, found = Texts(myst.RULES), []
    for partition, split in PARTITIONS.items():
        there = {
            path.with_suffix("")
            for end in ("flac", "trn")
            for path in (data / partition).glob(f"*/*/*.{end}")
        }
        for stem in sorted(there):
            audio, written = (stem.with_name(f"{stem.name}.{end}") for end in ("flac", "trn"))
            if not audio.is_file():
                texts.drop("en", "no recording", written)
                continue
            text = texts.clean(read_text(written), "en") if written.is_file() else ""
            if not text:
                if text == "":
                    texts.drop("en", "no transcript")
                continue
            session = audio.parent.name.split("_")
            found.append(
                Utterance(
                    key=key(audio.stem),
                    audio=audio,
                    text=text,
                    language="en",
                    speaker=audio.parent.parent.name,
                    split=split,
                    extra={"module": session[4]} if len(session) > 4 else {},
                )
            )
    if not found:
        raise UserError(f"{data} holds no STUDENT/SESSION/*.flac with a .trn: is it unpacked whole?")
    return texts.corpus(
        found, myst.LICENCE, "MyST Children's Conversational Speech, LDC2021S05, from the LDC"
    )
