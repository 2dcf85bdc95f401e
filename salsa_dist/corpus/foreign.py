"""An index for WebDataset tars made elsewhere, and resharding of any tars.

    index_tars(folder)          tars without index.json ──► index.json, nothing else is written
    reshard(folder, out, …)     tars, with an index or without ──► new shards, the same bytes a file

Both read each tar forward once, and stop at the first that is damaged; `shards lint` names all of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salsa_dist.corpus.archive import DamagedTar
from salsa_dist.corpus.tar_samples import Found, compressed, found, tars
from salsa_dist.corpus.upload import is_there, made_at, upload
from salsa_dist.corpus.utterance import key, refuse_other_splits, split_in
from salsa_dist.corpus.writer import Packed, check_name, is_key, write_tar
from salsa_dist.data.audio import BadAudio
from salsa_dist.data.file_hash import summed
from salsa_dist.data.index import FILE, Entry, Shard, ShardIndex
from salsa_dist.data.index_copy import own_copy
from salsa_dist.data.shards import AUDIO_KINDS, BadSample, open_channels, read_facts
from salsa_dist.errors import UserError
from salsa_dist.log import log
from salsa_dist.places import Folder, Remote
from salsa_dist.whole_file import put

ELSEWHERE = {"source": "tars made elsewhere", "licence": "not stated"}
_OTHER_SPLIT = "rename it, or give one --split for all tars of a folder"
LANGUAGE_FIELDS = ("language", "lang", "locale")


@dataclass(frozen=True)
class Usable:
    """A usable sample, and the facts about it."""

    sample: Found
    facts: dict[str, Any]
    language: str
    seconds: float
    rate: int


def index_tars(
    folder: Folder, language: str | None = None, split: str | None = None
) -> tuple[ShardIndex, list[str]]:
    """Write `folder/index.json`; returns it, and why samples were left out of it.

    Where a store can't be written, the index is kept on this machine, for this user's jobs here.

    Args:
        language: of samples whose JSON names none.
        split: of all tars; None: as their paths say (dev-000.tar, valid/…), else train.

    Raises:
        UserError: there is an index, a tar is damaged or holds two languages, or keys are not unique.
    """
    if _has(folder, FILE):
        raise UserError(f"{folder / FILE} is there: remove it to build another")
    paths = _tars(folder)
    if split is None:
        refuse_other_splits({("", path): folder / path for path in paths}, _OTHER_SPLIT)
    left_out: list[str] = []
    shards, rates = [], set()
    for path in paths:
        usable = list(_usable(folder, path, language, left_out))
        languages = sorted({one.language for one in usable})
        if len(languages) > 1:
            raise UserError(
                f"{folder / path} holds {', '.join(languages)}, and an indexed shard has one language: "
                "separate them with 'salsa-dist shards reshard'"
            )
        if not usable:
            continue
        rates |= {one.rate for one in usable}
        own = [
            Entry(one.sample.key, one.seconds, one.sample.offset, one.sample.length) for one in usable
        ]
        file = folder / path
        sha256, entries = summed(file, own)
        shards.append(
            Shard(
                path,
                split or split_in(path) or "train",
                languages[0],
                len(entries),
                round(sum(entry.seconds for entry in entries), 3),
                file.stat().st_size,
                sha256,
                entries,
            )
        )
    if not shards:
        raise UserError(
            f"{folder}: no sample can be used, such as {left_out[0] if left_out else 'none'}"
        )
    twice = [k for k, n in Counter(e.key for s in shards for e in s.entries).items() if n > 1]
    if twice:
        raise UserError(
            f"{folder}: {len(twice)} keys are in two samples, such as {twice[0]}: 'salsa-dist shards "
            "reshard' gives them others"
        )
    rate = rates.pop() if len(rates) == 1 else 0
    facts: dict[str, Any] = {**ELSEWHERE, "left_out": len(left_out)}
    index = ShardIndex(folder, _name(folder), rate, 0, facts, tuple(shards))
    if isinstance(folder, Remote):
        _send(index, folder)
        return index, left_out
    part = folder / f".{FILE}.{os.getpid()}"
    part.mkdir()
    try:
        index.save(part)
        for file in sorted(part.iterdir()):
            put(file, folder / file.name)
    finally:
        shutil.rmtree(part)
    return index, left_out


def reshard(
    folder: Folder,
    out: Folder,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    language: str | None = None,
    split: str | None = None,
) -> tuple[ShardIndex, list[str]]:
    """Copy all samples of `folder` to new shards in `out`. Returns index and dropped samples.

    A shard ends after `samples_per_shard` samples or `shard_bytes` bytes, whichever comes first. One
    tar at a time is read; what is held in memory is one shard a language and split.

    Raises:
        UserError: as `index_tars`; or `out` is there already.
    """
    if is_there(out):
        raise UserError(f"{out} is there: name another folder")
    if not (samples_per_shard or shard_bytes) or min(samples_per_shard or 1, shard_bytes or 1) < 1:
        raise UserError("say how large a shard is: --samples-per-shard or --shard-size, 1 or more")
    paths = _tars(folder)
    old = ShardIndex.load(folder) if _has(folder, FILE) else None
    splits = {shard.path: shard.split for shard in old.shards} if old else {}
    if split is None:
        unknown = {("", path): folder / path for path in paths if path not in splits}
        refuse_other_splits(unknown, _OTHER_SPLIT)
    left_out: list[str] = []
    waiting: dict[tuple[str, str], list[Packed]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    rates: set[int] = set()
    shards: list[Shard] = []
    with made_at(out) as new:

        def write(place: tuple[str, str]) -> None:
            path = f"{place[0]}/{place[1]}-{numbers[place]:06d}.tar"
            shards.append(write_tar(new, path, place[1], place[0], waiting.pop(place)))
            numbers[place] += 1
            sizes[place] = 0

        for path in paths:
            for one in _usable(folder, path, language, left_out):
                place = (one.language, splits.get(path) or split or split_in(path) or "train")
                packed = _repacked(one, path, seen)
                rates.add(one.rate)
                size = len(packed.audio) + 2048
                if shard_bytes and waiting.get(place) and sizes[place] + size > shard_bytes:
                    write(place)
                waiting.setdefault(place, []).append(packed)
                sizes[place] += size
                if len(waiting[place]) == samples_per_shard:
                    write(place)
        for place in sorted(waiting):
            write(place)
        if not shards:
            raise UserError(f"{folder}: no sample can be used, such as {(left_out or ['none'])[0]}")
        facts: dict[str, Any] = dict(old.recipe if old else ELSEWHERE)
        facts["resharded"] = {"left_out": len(left_out), "from": old.hash if old else None}
        name = old.name if old else _name(folder)
        rate = rates.pop() if len(rates) == 1 else 0
        ordered = tuple(sorted(shards, key=lambda shard: shard.path))
        index = ShardIndex(out, name, rate, old.seed if old else 0, facts, ordered)
        index.save(new)
    return index, left_out


def _send(index: ShardIndex, folder: Remote) -> None:
    with tempfile.TemporaryDirectory() as made:
        index.save(Path(made))
        try:
            upload(Path(made), folder)
        except UserError as e:
            own = own_copy(folder)
            own.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(made).iterdir()):
                shutil.copyfile(file, own / file.name)
            log.warning(f"{e}; the index is kept in {own}")


def _has(folder: Folder, name: str) -> bool:
    try:
        return (folder / name).exists()
    except OSError as e:
        raise UserError(f"{folder} can't be read ({e.strerror})") from e


def _name(folder: Folder) -> str:
    return folder.name if isinstance(folder, Remote) else folder.resolve().name


def _tars(folder: Folder) -> list[str]:
    try:
        there, paths, other = folder.is_dir(), tars(folder), compressed(folder)
    except OSError as e:
        raise UserError(f"{folder} can't be read ({e.strerror})") from e
    if not there:
        raise UserError(f"{folder} is no folder: name a folder of tars")
    if other:
        raise UserError(
            f"{folder / other[0]} is compressed, and samples are read by their place in a tar: unpack "
            "it to a .tar, or move it elsewhere"
        )
    if not paths:
        raise UserError(f"{folder} holds no .tar: name a folder of tars")
    return paths


def _usable(folder: Folder, path: str, language: str | None, left_out: list[str]) -> Iterator[Usable]:
    """The usable samples of one tar; `left_out` gets the reasons for all others."""
    try:
        for sample in found(folder / path):
            try:
                if sample.notes:
                    raise BadSample(path, sample.key, sample.notes[0])
                audio, rate = open_channels(sample.files, path, sample.key)
                facts = read_facts(sample.files, path, sample.key)
                named = next((facts[name] for name in LANGUAGE_FIELDS if facts.get(name)), language)
                if not named:
                    raise UserError(f"{folder / path}: {sample.key} names no language: give --language")
                check_name(str(named))
                yield Usable(sample, facts, str(named), len(audio) / rate, rate)
            except (BadAudio, BadSample) as e:
                left_out.append(str(e))
    except DamagedTar as e:
        raise UserError(f"{folder / path} {e}: fetch it again, or remove it") from e
    except OSError as e:
        raise UserError(f"{folder / path} can't be read ({e.strerror})") from e


def _repacked(one: Usable, path: str, seen: set[str]) -> Packed:
    """The sample under a key that is safe and its own; audio and JSON are as they were."""
    name = one.sample.key
    named = name if is_key(name) else key(name)
    if named in seen:
        named = key(f"{path.removesuffix('.tar')}/{name}")
    if named in seen:
        raise UserError(f"{path}: sample {name} is there twice")
    seen.add(named)
    kind = next(kind for kind in AUDIO_KINDS if kind in one.sample.files)
    facts = {**one.facts, "language": one.language}
    return Packed(named, kind, one.sample.files[kind], facts, one.seconds)
