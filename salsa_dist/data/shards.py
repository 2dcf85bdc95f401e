"""Tar shards: writing them from samples, and reading one sample out of its byte range.

A shard is a plain WebDataset tar; a sample is two files that lie side by side in it:

    KEY.flac    mono, 16 bit, 16,000 Hz
    KEY.json    {"text", "language", "speaker" (null: unknown), "seconds", "licence", "source"}

    Sample ──ShardWriter──► LANGUAGE/SPLIT-000000.tar … + index.json
    Entry(offset, length) ──read_range──► bytes ──read_sample──► (samples,) float32, {text, …}

The same samples in the same order give the same bytes: times, owners and modes in the tar are fixed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile
import soxr

from salsa_dist.data.audio import Audio
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.errors import UserError

SAMPLE_RATE = 16_000  # Hz
MAX_SECONDS = 600.0  # of one sample; a few bytes of FLAC can claim hours of silence
MAX_BYTES = 256 << 20  # of one sample in the tar: 600 s of 48 kHz stereo fit
MAX_VALUES = 1 << 26  # channels times samples, decoded: so do they here
RATES = (4_000, 384_000)  # Hz, lowest and highest of what lies in a shard
READ_BYTES = 64 << 20  # of one read; a sample may take more
AUDIO_KINDS = ("flac", "wav", "mp3", "ogg", "opus")
KINDS = (*AUDIO_KINDS, "json", "txt")
DANGEROUS_KINDS = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "joblib")
TEXT_FIELDS = ("text", "transcript", "transcription", "sentence")

_MAX_GAP = 512  # bytes between two samples that one read passes over
# WebDataset's own rule: the key ends at the first dot of the file's name.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<kind>[^/]*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_-]+")
# WebDataset cuts a file's name at its first dot, so a key has none; short enough for one tar header.
_KEY = re.compile(r"(?:[A-Za-z0-9_-]+/)*[A-Za-z0-9_-]{1,90}")
_MAX_KEY = 200


class BadSample(UserError):
    """One sample of a shard that can't be used; names the shard and the key.

    `kind` is `audio` (unreadable), `transcript` (missing, empty, damaged), `bounds` (a rate, length or
    size out of bounds), `tar` (cut off, or not what the index says) or `shard` (it can't be opened).
    """

    def __init__(self, shard: str | Path, key: str | None, what: str, kind: str = "tar") -> None:
        super().__init__(f"{shard}: sample {key or 'without a key'} {what}")
        self.shard, self.key, self.kind = str(shard), key, kind


@dataclass(frozen=True)
class Sample:
    """One clip with its text; `audio` is `(samples,)` float32 in [-1, 1] at 16,000 Hz."""

    key: str
    audio: Audio
    text: str
    language: str
    speaker: str | None
    licence: str
    source: str


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # after finish there is none

    def write(
        self, split: str, language: str, samples: Iterable[Sample], samples_per_shard: int
    ) -> None:
        """Write all `samples` of one split and language, `samples_per_shard` to a tar."""
        for name in (split, language):
            if not _NAME.fullmatch(name):
                raise UserError(f"{name!r} can't name a split or language: use letters, digits, _ -")
        if any((s.split, s.language) == (split, language) for s in self._shards):
            raise UserError(f"{split} in {language} was written already: write all of it in one go")
        left = iter(samples)
        number = 0
        while chunk := next(left, None):
            path = f"{language}/{split}-{number:06d}.tar"
            rest = islice(left, samples_per_shard - 1)
            self._shards.append(self._write_tar(path, split, language, _chain(chunk, rest)))
            number += 1

    def finish(self, recipe: dict[str, Any]) -> ShardIndex:
        """Write the index, with the facts in `recipe`, and put the folder where it belongs."""
        if not self._shards:
            raise UserError(f"no sample for {self.out}: look at the source and the languages asked")
        shards = tuple(sorted(self._shards, key=lambda shard: shard.path))
        index = ShardIndex(self.out, self.name, SAMPLE_RATE, self.seed, recipe, shards)
        index.save(self._folder)
        self._folder.chmod(0o755)
        self._folder.rename(self.out)
        return index

    def _write_tar(self, path: str, split: str, language: str, samples: Iterable[Sample]) -> Shard:
        from webdataset import TarWriter  # slow to import, and readers of shards need it never

        file = self._folder / path
        file.parent.mkdir(exist_ok=True)
        entries = []
        with (
            file.open("wb") as stream,
            TarWriter(stream, user="", group="", mode=0o444, mtime=0, encoder=False) as tar,
        ):
            for sample in samples:
                self._check(sample, language)
                seconds = len(sample.audio) / SAMPLE_RATE
                start = tar.tarstream.offset
                tar.write(
                    {
                        "__key__": sample.key,
                        "flac": _flac(sample.audio),
                        "json": _json(sample, seconds),
                    }
                )
                entries.append(Entry(sample.key, seconds, start, tar.tarstream.offset - start))
        return Shard(
            path=path,
            split=split,
            language=language,
            samples=len(entries),
            seconds=round(sum(entry.seconds for entry in entries), 3),
            bytes=file.stat().st_size,
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            entries=tuple(entries),
        )

    def _check(self, sample: Sample, language: str) -> None:
        key, audio = sample.key, sample.audio
        if not _KEY.fullmatch(key) or len(key) > _MAX_KEY:
            raise UserError(f"{key!r} can't be a key: use letters, digits, _ - and / between them")
        if key in self._keys:
            raise UserError(f"two samples have the key {key}: keys must differ")
        self._keys.add(key)
        if sample.language != language:
            raise UserError(f"sample {key} is in {sample.language}, among those in {language}")
        if not sample.text.strip():
            raise UserError(f"sample {key} has no text: drop it in the recipe")
        if audio.ndim != 1 or not 0 < len(audio) <= MAX_SECONDS * SAMPLE_RATE:
            raise UserError(
                f"sample {key} has audio of shape {audio.shape}: it must be (samples,) of at most "
                f"{MAX_SECONDS:.0f} s"
            )
        if not np.isfinite(audio).all():
            raise UserError(f"sample {key} has NaN or infinite audio: drop it in the recipe")


def read_ranges(
    path: str | Path, entries: Iterable[Entry]
) -> Iterator[tuple[Entry, bytes | BadSample]]:
    """The bytes of several samples of one shard, or why a sample has none.

    The shard is opened once and read forward; samples that lie side by side are read together.
    """
    wanted = sorted(entries, key=lambda e: e.offset)
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as e:
        for entry in wanted:
            yield entry, BadSample(path, entry.key, f"can't be read ({e.strerror})", "shard")
        return
    with file:
        for run in _runs(wanted):
            start = run[0].offset
            try:
                file.seek(start)
                raw = _read_fully(file, run[-1].offset + run[-1].length - start)
            except OSError as e:
                why = f"can't be read ({e.strerror})"
                yield from ((x, BadSample(path, x.key, why, "shard")) for x in run)
                continue
            for entry in run:
                own = raw[entry.offset - start : entry.offset - start + entry.length]
                if entry.length > MAX_BYTES:
                    why = f"claims {entry.length} bytes, more than {MAX_BYTES}"
                    yield entry, BadSample(path, entry.key, why, "bounds")
                elif len(own) < entry.length:
                    why = "lies behind the end of its tar: fetch the shard again"
                    yield entry, BadSample(path, entry.key, why, "tar")
                else:
                    yield entry, own


def read_range(path: str | Path, entry: Entry) -> bytes:
    """The bytes of one sample: one seek, one read."""
    ((_, raw),) = read_ranges(path, [entry])
    if isinstance(raw, BadSample):
        raise raw
    return raw


def _runs(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in the order of a file, cut into what one read takes."""
    run: list[Entry] = []
    for entry in entries:
        if run:
            gap = entry.offset - (run[-1].offset + run[-1].length)
            whole = entry.offset + entry.length - run[0].offset
            if not 0 <= gap <= _MAX_GAP or whole > READ_BYTES:
                yield run
                run = []
        # What claims too much is a run of its own, of which only the allowed part is read.
        run.append(entry)
    if run:
        yield run


def _read_fully(file: io.FileIO, length: int) -> bytes:
    """`length` bytes, never more than a sample may have, and fewer only at the end of the file."""
    left = min(length, MAX_BYTES)
    pieces = []
    while left and (piece := file.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_sample(
    raw: bytes, shard: str | Path = "shard in memory", key: str | None = None
) -> tuple[Audio, dict[str, Any]]:
    """Audio `(samples,)` float32 at 16,000 Hz and the facts of the sample in `raw`.

    The facts are those of its JSON, or only the `text` of its .txt where others wrote the tar. With
    `key`, another sample's bytes are refused; `shard` is what errors call the tar. Only audio, JSON and
    text are decoded; a file that Python or torch would run code from is refused, whatever is in it.
    """
    if len(raw) > MAX_BYTES:
        raise BadSample(shard, key, f"has {len(raw)} bytes, more than {MAX_BYTES}", "bounds")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                stem, kind = key_and_kind(member.name)
                if (
                    kind.rpartition(".")[2] in DANGEROUS_KINDS
                    or not member.isreg()
                    or member.issparse()
                ):
                    raise BadSample(shard, key, f"holds {member.name!r}, no plain audio or text", "tar")
                if kind in files or (key is not None and stem != key):
                    raise BadSample(shard, key, f"holds {member.name!r} too: the index is wrong", "tar")
                key = stem
                if kind not in KINDS:
                    continue  # such as a picture beside the audio of others' tars
                content = tar.extractfile(member)
                files[kind] = content.read(len(raw)) if content else b""
                if len(files[kind]) != member.size:
                    raise BadSample(shard, key, f"is cut off in its {kind}", "tar")
    except (tarfile.TarError, ValueError, EOFError) as e:
        raise BadSample(shard, key, f"is no piece of a tar ({e})", "tar") from None
    audio, rate = open_audio(files, shard, key)
    if rate != SAMPLE_RATE:
        # Not by torchaudio, which takes three times as long: this is done again in every epoch.
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    return audio, read_facts(files, shard, key)


def key_and_kind(name: str) -> tuple[str, str]:
    """What WebDataset makes of a file's name: `bg/a.seg.FLAC` is sample `bg/a`, kind `seg.flac`."""
    match = _MEMBER.fullmatch(name)
    return (match["key"], match["kind"].lower()) if match else (name, "")


def open_audio(files: Mapping[str, bytes], shard: str | Path, key: str | None) -> tuple[Audio, int]:
    """`(samples,)` float32 and its rate in Hz, of a sample's files by kind. Raises: BadSample."""

    def bad(what: str, kind: str) -> BadSample:
        return BadSample(shard, key, what, kind)

    found = next((kind for kind in AUDIO_KINDS if kind in files), None)
    if found is None:
        raise bad(f"lacks audio: it has none of {', '.join(AUDIO_KINDS)}", "audio")
    try:
        with soundfile.SoundFile(io.BytesIO(files[found])) as file:
            rate, claimed = file.samplerate, file.frames
            if not RATES[0] <= rate <= RATES[1]:
                raise bad(f"has a rate of {rate} Hz, not one from {RATES[0]} to {RATES[1]}", "bounds")
            if claimed > MAX_SECONDS * rate:
                raise bad(f"claims more than {MAX_SECONDS:.0f} s of audio", "bounds")
            if claimed * file.channels > MAX_VALUES:
                raise bad(f"claims {claimed} samples in {file.channels} channels", "bounds")
            # Only what the header claims, which is bounded now, whatever the file expands to.
            audio: Audio = file.read(claimed, dtype="float32")
            cut_off = file.format == "FLAC" and len(audio) < claimed
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as e:
        raise bad(f"has unreadable audio ({' '.join(str(e).split())})", "audio") from None
    if not len(audio) or cut_off:
        raise bad(f"has unreadable audio ({len(audio)} of {claimed} samples)", "audio")
    if audio.ndim > 1:
        audio = audio.mean(axis=1, dtype=np.float32)
    if not np.isfinite(audio).all():
        raise bad("has unreadable audio (NaN or infinite samples)", "audio")
    return audio, rate


def read_facts(files: Mapping[str, bytes], shard: str | Path, key: str | None) -> dict[str, Any]:
    """The facts of a sample, by its files; its transcript is "text". Raises: BadSample."""
    try:
        facts = json.loads(files.get("json", b"{}"))
        if "txt" in files:
            facts["text"] = files["txt"].decode("utf-8").strip()
    except (ValueError, TypeError, RecursionError) as e:
        raise BadSample(shard, key, f"has damaged JSON or text ({e})", "transcript") from None
    text = next((facts[f] for f in TEXT_FIELDS if f in facts), None) if type(facts) is dict else None
    if not isinstance(text, str):
        raise BadSample(shard, key, "has no text in its JSON, and no .txt", "transcript")
    if not text.strip():
        raise BadSample(shard, key, "has an empty transcript", "transcript")
    facts["text"] = text
    return facts


def _flac(audio: Audio) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.clip(audio, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _json(sample: Sample, seconds: float) -> bytes:
    facts = {
        "text": sample.text,
        "language": sample.language,
        "speaker": sample.speaker,
        "seconds": seconds,
        "licence": sample.licence,
        "source": sample.source,
    }
    return json.dumps(facts, ensure_ascii=False).encode()


def _chain(first: Sample, rest: Iterable[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest
