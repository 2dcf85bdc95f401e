"""Writing tar shards: samples to tars, tars and an index to a folder.

    Packed ── key, kind ("flac"), audio (bytes of that file), facts (JSON), seconds
      │
    write_tar ──► LANGUAGE/SPLIT-000000.tar, Shard        one tar, whole or not there at all
      │
    ShardWriter ──► a folder of them + index.json         from samples that lie in memory

The same samples in the same order give the same bytes: times, owners and modes in the tar are fixed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from salsa_dist.corpus.utterance import Utterance
from salsa_dist.data.audio import MAX_SECONDS, Audio, flac
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.data.file_hash import summed
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.shards import MAX_WEIGHT
from salsa_dist.errors import UserError
from salsa_dist.whole_file import put

NAME = re.compile(r"[A-Za-z0-9_-]+")
# WebDataset cuts a file's name at its first dot, so a key has none; short enough for one tar header.
_KEY = re.compile(r"(?:[A-Za-z0-9_-]+/)*[A-Za-z0-9_-]{1,90}")
_MAX_KEY = 200


@dataclass(frozen=True)
class Sample:
    """One clip with its text; `audio` is `(samples,)` float32 in [-1, 1] at 16,000 Hz.

    The text is empty only where nobody speaks (`speech=False`). `loss_weight` multiplies the clip's
    loss in training.
    """

    key: str
    audio: Audio
    text: str
    language: str
    speaker: str | None
    licence: str
    source: str
    speech: bool = True
    loss_weight: float = 1.0


@dataclass(frozen=True)
class Packed:
    """The files of one sample, as they go into a tar: `KEY.KIND` and `KEY.json`."""

    key: str
    kind: str
    audio: bytes
    facts: Mapping[str, Any]
    seconds: float


class ShardWriter:
    """Builds a folder of shards that appears only when it is complete.

    with ShardWriter(out, "my-corpus", seed=0) as writer:
        writer.write("train", "bg", samples, samples_per_shard=1000)
        index = writer.finish({"source": "…"})

    Everything is written into a folder beside `out`, which `finish` renames; a build that is killed
    leaves at most that hidden folder, and one that raises not even this.
    """

    def __init__(self, out: Path, name: str, seed: int) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder: name another or remove it")
        self.out, self.name, self.seed = out, name, seed
        self._shards: list[Shard] = []
        self._keys: set[str] = set()
        out.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # after finish there is none

    def write(
        self, split: str, language: str, samples: Iterable[Sample], samples_per_shard: int
    ) -> None:
        """Write all `samples` of one split and language, `samples_per_shard` to a tar."""
        for name in (split, language):
            check_name(name)
        if any((s.split, s.language) == (split, language) for s in self._shards):
            raise UserError(f"{split} in {language} was written already: write all of it in one go")
        left = self._packed(samples, language)
        number = 0
        while chunk := next(left, None):
            path = f"{language}/{split}-{number:06d}.tar"
            rest = islice(left, samples_per_shard - 1)
            self._shards.append(write_tar(self._folder, path, split, language, chain([chunk], rest)))
            number += 1

    def finish(self, recipe: dict[str, Any]) -> ShardIndex:
        """Write the index, with the facts in `recipe`, and put the folder where it belongs."""
        if not self._shards:
            raise UserError(f"no sample for {self.out}: look at the source and the languages asked")
        shards = tuple(sorted(self._shards, key=lambda shard: shard.path))
        index = ShardIndex(self.out, self.name, SAMPLE_RATE, self.seed, recipe, shards)
        index.save(self._folder)
        self._folder.chmod(0o755)
        put(self._folder, self.out)
        return index

    def _packed(self, samples: Iterable[Sample], language: str) -> Iterator[Packed]:
        for sample in samples:
            self._check(sample, language)
            seconds = len(sample.audio) / SAMPLE_RATE
            facts = {
                "text": sample.text,
                "language": sample.language,
                "speaker": sample.speaker,
                "seconds": seconds,
                "licence": sample.licence,
                "source": sample.source,
                **marks(sample),
            }
            yield Packed(sample.key, "flac", flac(sample.audio, SAMPLE_RATE), facts, seconds)

    def _check(self, sample: Sample, language: str) -> None:
        key, audio = sample.key, sample.audio
        check_key(key)
        if key in self._keys:
            raise UserError(f"two samples have the key {key}: keys must differ")
        self._keys.add(key)
        if sample.language != language:
            raise UserError(f"sample {key} is in {sample.language}, among those in {language}")
        if not sample.text.strip() and sample.speech:
            raise UserError(f"sample {key} has no text: drop it in the recipe")
        if not 0 <= sample.loss_weight <= MAX_WEIGHT:
            raise UserError(
                f"sample {key} has the loss_weight {sample.loss_weight!r}: it must be a number from 0 "
                f"to {MAX_WEIGHT:g}"
            )
        if audio.ndim != 1 or not 0 < len(audio) <= MAX_SECONDS * SAMPLE_RATE:
            raise UserError(
                f"sample {key} has audio of shape {audio.shape}: it must be (samples,) of at most "
                f"{MAX_SECONDS:.0f} s"
            )
        if not np.isfinite(audio).all():
            raise UserError(f"sample {key} has NaN or infinite audio: drop it in the recipe")


def marks(of: Sample | Utterance) -> dict[str, Any]:
    """What a sample's JSON says of a clip without speech, or with a weight of its own; else nothing."""
    speech = {} if of.speech else {"speech": False}
    return speech if of.loss_weight == 1 else {**speech, "loss_weight": of.loss_weight}


def check_name(name: str) -> None:
    """Refuse names of splits or languages that cannot be a part of a shard's path."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} can't name a split or language: use letters, digits, _ -")


def is_key(key: str) -> bool:
    """Whether `key` can name a sample in every reader of WebDataset tars."""
    return bool(_KEY.fullmatch(key)) and len(key) <= _MAX_KEY


def check_key(key: str) -> None:
    """Refuse what `is_key` says no to."""
    if not is_key(key):
        raise UserError(f"{key!r} can't be a key: use letters, digits, _ - and / between them")


def write_tar(folder: Path, path: str, split: str, language: str, samples: Iterable[Packed]) -> Shard:
    """Write `samples` to `folder/path`, which appears when it is whole and on the disk.

    A shard without samples is not written at all: its `samples` is 0.
    """
    from webdataset import TarWriter  # slow to import, and readers of shards need it never

    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    own: list[Entry] = []
    try:
        with (
            part.open("wb") as stream,
            TarWriter(stream, user="", group="", mode=0o444, mtime=0, encoder=False) as tar,
        ):
            for sample in samples:
                start = tar.tarstream.offset
                facts = json.dumps(sample.facts, ensure_ascii=False).encode()
                tar.write({"__key__": sample.key, sample.kind: sample.audio, "json": facts})
                entry = Entry(sample.key, sample.seconds, start, tar.tarstream.offset - start)
                own.append(entry)
        sha256, entries = summed(part, own)
        size = part.stat().st_size
        if entries:
            put(part, file)
    finally:
        part.unlink(missing_ok=True)
    return Shard(
        path=path,
        split=split,
        language=language,
        samples=len(entries),
        seconds=round(sum(entry.seconds for entry in entries), 3),
        bytes=size,
        sha256=sha256,
        entries=entries,
    )
