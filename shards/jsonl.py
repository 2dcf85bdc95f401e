"""Recipe: manifests of one JSON object per line.

Source: FILE.jsonl (or .json, or either with .gz), or a folder of them (train.jsonl, dev.jsonl, …).

    {"audio": "clips/a.wav", "text": "…", "language": "bg", "speaker": "s1", "split": "train"}
    {"audio": "tape.flac", "start": 12.5, "end": 17.0, "text": "…"}      part of a long recording, s

Audio paths are relative to the manifest. Other names of these fields are known too
(`salsa_dist/corpus/manifest.py`); `--column text=sentence_clean` names any other. What other
fields say in a word or a number, such as age and grade, goes along.
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus import manifest
from salsa_dist.corpus.utterance import Ask, Corpus

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every line of every manifest."""
    files = manifest.files(source, SUFFIXES)
    rows = (row for file in files for row in manifest.json_rows(file))
    return manifest.corpus(rows, ask, f"JSONL manifest {source.name}")
