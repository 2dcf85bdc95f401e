"""Recipe: manifests of NVIDIA NeMo.

Source: MANIFEST.json, or a folder of them (train_manifest.json, …); one JSON object per line:

    {"audio_filepath": "a.wav", "duration": 3.45, "text": "…"}
    {"audio_filepath": "tape.wav", "offset": 3.45, "duration": 1.45, "text": "…", "lang": "bg"}

as in https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html: paths are
absolute or relative to the manifest, offset and duration are seconds; without an offset the whole file
is meant. Tarred data sets are tars already: see `salsa-dist shards index`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from salsa_dist.corpus import manifest
from salsa_dist.corpus.utterance import Ask, Corpus
from salsa_dist.errors import UserError

SUFFIXES = (".json", ".jsonl", ".json.gz")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every line of every manifest."""
    return manifest.corpus(rows(source), ask, f"NeMo manifest {source.name}")


def rows(source: Path) -> Iterator[manifest.Row]:
    """The lines, checked to be NeMo's."""
    for file in manifest.files(source, SUFFIXES):
        for row in manifest.json_rows(file):
            if "shard_id" in row.values:
                raise UserError(
                    f"{row.place}: a tarred manifest: name its tars to 'salsa-dist shards index'"
                )
            if "audio_filepath" not in row.values:
                raise UserError(f"{row.place}: no audio_filepath: is it a NeMo manifest?")
            yield row
