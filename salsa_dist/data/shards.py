"""Tar shards: reading one sample by its byte range.

A shard is a plain WebDataset tar; a sample is a few files that lie side by side in it.
`corpus/writer.py` writes the first kind; others' tars of speech have the second, and are read as well:

    KEY.flac    mono, 16 bit                     KEY.wav     or flac, mp3, ogg, opus; any rate
    KEY.json    {"text", "language", …}          KEY.txt     or KEY.json with a text

In both, `"speech": false` in the JSON of a clip in which nobody speaks allows an empty text, and
`"loss_weight": 2` weighs a clip in training.

    Entry(offset, length) ──read_ranges──► bytes ──read_sample──► (samples,) float32, {text, …}

What else a foreign tar holds is skipped unread; what can run code when decoded (pickles and their
like) is refused.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salsa_dist.data.audio import Audio, BadAudio, channels, mono, resample
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.data.index import Entry
from salsa_dist.errors import UserError
from salsa_dist.places import Remote

MAX_BYTES = 256 << 20  # of one sample in the tar: 600 s of 48 kHz stereo fit
MAX_WEIGHT = 1000.0
READ_BYTES = 64 << 20  # of one read; a sample may take more
AUDIO_KINDS = ("flac", "wav", "mp3", "ogg", "opus")
KINDS = (*AUDIO_KINDS, "json", "txt")
Named = str | Path | Remote  # what errors call a shard
Bytes = bytes | memoryview  # of a sample or of one of its files
DANGEROUS_KINDS = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "joblib")
TEXT_FIELDS = ("text", "transcript", "transcription", "sentence")

_MAX_GAP = 512  # bytes between two samples that one read passes over
_MAX_RUN = 500  # samples of one read; the system takes 1,024 buffers, those of gaps included
_BLOCK = 512  # bytes that a tar is made of
# WebDataset's own rule: the key ends at the first dot of the file's name.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<kind>[^/]*)", re.DOTALL)


class BadSample(UserError):
    """One sample of a shard that can't be used; names the shard and the key.

    `kind` is `audio` (unreadable), `transcript` (missing, empty, damaged), `bounds` (a rate, length or
    size out of bounds), `tar` (cut off, or not what the index says) or `shard` (it can't be opened).
    """

    def __init__(self, shard: Named, key: str | None, what: str, kind: str = "tar") -> None:
        super().__init__(f"{_called(shard, key)} {what}")
        self.shard, self.key, self.what, self.kind = str(shard), key, what, kind


def _called(shard: Named, key: str | None) -> str:
    return f"{shard}: sample {key or 'without a key'}"


def read_ranges(
    path: str | Path, entries: Iterable[Entry]
) -> Iterator[tuple[Entry, Bytes | BadSample]]:
    """The bytes of several samples of one shard, or why a sample has none.

    The shard is opened once and read forward; samples that lie side by side are read together.
    """
    wanted = list(entries)
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as e:
        for entry in wanted:
            yield entry, BadSample(path, entry.key, f"can't be read ({e.strerror})", "shard")
        return
    with file:
        yield from read_open(file.fileno(), path, wanted)


def read_open(
    fd: int, path: Named, entries: Iterable[Entry]
) -> Iterator[tuple[Entry, Bytes | BadSample]]:
    """Like `read_ranges`, for an open file; `path` is its name in errors."""
    wanted = []
    for entry in sorted(entries, key=lambda e: e.offset):
        if entry.length > MAX_BYTES:
            why = f"claims {entry.length} bytes, more than {MAX_BYTES}"
            yield entry, BadSample(path, entry.key, why, "bounds")
        else:
            wanted.append(entry)
    for run in runs(wanted):
        try:
            found, end = _read_run(fd, run)
        except OSError as e:
            why = f"can't be read ({e.strerror})"
            yield from ((x, BadSample(path, x.key, why, "shard")) for x in run)
            continue
        for entry, own in zip(run, found, strict=True):
            if entry.offset + entry.length > end:
                why = "lies behind the end of its tar: fetch the shard again"
                yield entry, BadSample(path, entry.key, why, "tar")
            else:
                yield entry, own


def runs(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in the order of a file, divided into single reads."""
    run: list[Entry] = []
    for entry in entries:
        if run:
            gap = entry.offset - (run[-1].offset + run[-1].length)
            whole = entry.offset + entry.length - run[0].offset
            if not 0 <= gap <= _MAX_GAP or whole > READ_BYTES or len(run) == _MAX_RUN:
                yield run
                run = []
        run.append(entry)
    if run:
        yield run


def _read_run(fd: int, run: Sequence[Entry]) -> tuple[list[memoryview], int]:
    """The bytes of each sample, each in its own memory, and the end of the read."""
    found: list[memoryview] = []
    wanted: list[memoryview] = []
    end = start = run[0].offset
    for entry in run:
        if entry.offset > end:
            wanted.append(memoryview(bytearray(entry.offset - end)))
        # Not a bytearray, which would be filled with zeros first.
        found.append(np.empty(entry.length, np.uint8).data)
        wanted.append(found[-1])
        end = entry.offset + entry.length
    at = start
    # A read may stop early; only at the end of the file it gives nothing.
    while wanted and (got := os.preadv(fd, wanted, at)):
        at += got
        while wanted and got >= len(wanted[0]):
            got -= len(wanted.pop(0))
        if got:
            wanted[0] = wanted[0][got:]
    return found, at


def read_sample(
    raw: Bytes, shard: Named = "shard in memory", key: str | None = None
) -> tuple[Audio, dict[str, Any]]:
    """Audio `(samples,)` float32 at 16,000 Hz and the facts of the sample in `raw`.

    The facts are those of its JSON, or only the `text` of its .txt where others wrote the tar. With
    `key`, another sample's bytes are refused; `shard` is what errors call the tar. Only audio, JSON and
    text are decoded; a file that Python or torch would run code from is refused, whatever is in it.
    """
    if len(raw) > MAX_BYTES:
        raise BadSample(shard, key, f"has {len(raw)} bytes, more than {MAX_BYTES}", "bounds")
    files: dict[str, memoryview] = {}
    whole = memoryview(raw)
    try:
        for file in _files(raw):
            stem, kind = key_and_kind(file.name)
            if kind.rpartition(".")[2] in DANGEROUS_KINDS or not file.plain:
                raise BadSample(shard, key, f"holds {file.name!r}, no plain audio or text", "tar")
            if kind in files or (key is not None and stem != key):
                raise BadSample(shard, key, f"holds {file.name!r} too: the index is wrong", "tar")
            key = stem
            if kind not in KINDS:
                continue  # such as a picture beside the audio of others' tars
            files[kind] = whole[file.start : file.start + file.size]
            if len(files[kind]) != file.size:
                raise BadSample(shard, key, f"is cut off in its {kind}", "tar")
    except (tarfile.TarError, ValueError, EOFError) as e:
        raise BadSample(shard, key, f"is no piece of a tar ({e})", "tar") from e
    try:
        several, rate = open_channels(files, shard, key)
    except BadAudio as e:
        raise BadSample(shard, key, e.what, "audio" if e.kind == "audio" else "bounds") from e
    return resample(mono(several), rate, SAMPLE_RATE), read_facts(files, shard, key)


@dataclass(frozen=True)
class _File:
    """One file of a sample: bytes `[start, start + size)` of its part of the tar."""

    name: str
    start: int
    size: int
    plain: bool


def _files(raw: Bytes) -> list[_File]:
    """The files of a part of a tar. Raises: TarError, ValueError, EOFError."""
    at, found = 0, []
    while at < len(raw) and (file := _plain_file(raw, at)):
        found.append(file)
        at = file.start + -(-file.size // _BLOCK) * _BLOCK
    if found and at == len(raw):
        return found
    # Long names, links, ends of tars, damage: all that is not one plain file after another.
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
        return [_File(x.name, x.offset_data, x.size, x.isreg() and not x.issparse()) for x in tar]


def _plain_file(raw: Bytes, at: int) -> _File | None:
    """Parse the simplest kind of header at `at`; tarfile reads all other kinds.

    tarfile takes five times as long for it, which is 3% of what a clip takes in all.
    """
    header = bytes(raw[at : at + _BLOCK])
    size, checksum = header[124:135], header[148:154]
    simple = header[156:157] == tarfile.REGTYPE and header[257:262] == b"ustar" and not header[345]
    if not (simple and size.isdigit() and checksum.isdigit()):
        return None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(checksum, 8):
        return None
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return _File(name, at + _BLOCK, int(size, 8), plain=True)


def key_and_kind(name: str) -> tuple[str, str]:
    """WebDataset's key and kind of a file name: `bg/a.seg.FLAC` is sample `bg/a`, kind `seg.flac`."""
    match = _MEMBER.fullmatch(name)
    return (match["key"], match["kind"].lower()) if match else (name, "")


def open_channels(files: Mapping[str, Bytes], shard: Named, key: str | None) -> tuple[Audio, int]:
    """Decode a sample's files, by kind: `(samples, channels)` float32 and the rate in Hz.

    Raises:
        BadAudio: there is none, or none that can be used.
    """
    found = next((kind for kind in AUDIO_KINDS if kind in files), None)
    if found is None:
        what = f"lacks audio: it has none of {', '.join(AUDIO_KINDS)}"
        raise BadAudio(_called(shard, key), what)
    return channels(files[found], _called(shard, key))


def half_character(line: str, value: Any) -> str | None:
    """What JSON can escape and no text can hold, such as half of an emoji; None: `value` has none."""
    if "\\ud" not in line.lower():
        return None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        return ascii(e.object[e.start])
    return None


def read_facts(files: Mapping[str, Bytes], shard: Named, key: str | None) -> dict[str, Any]:
    """The facts of a sample from its files; its transcript is "text". Raises: BadSample."""
    try:
        raw = bytes(files.get("json", b"{}"))
        facts = json.loads(raw)
        if (half := half_character(raw.decode("latin-1"), facts)) is not None:
            raise ValueError(f"{half} is half a character")
        if "txt" in files:
            facts["text"] = str(files["txt"], "utf-8-sig").strip()
    except (ValueError, TypeError, RecursionError) as e:
        raise BadSample(shard, key, f"has damaged JSON or text ({e})", "transcript") from e
    text = next((facts[f] for f in TEXT_FIELDS if f in facts), None) if type(facts) is dict else None
    if not isinstance(text, str):
        raise BadSample(shard, key, "has no text in its JSON, and no .txt", "transcript")
    if not text.strip() and facts.get("speech") is not False:
        why = 'has an empty transcript, and no "speech": false in its JSON'
        raise BadSample(shard, key, why, "transcript")
    weight = facts.get("loss_weight", 1.0)
    if type(weight) not in (int, float) or not 0 <= weight <= MAX_WEIGHT:
        why = f"has the loss_weight {weight!r}: it must be a number from 0 to {MAX_WEIGHT:g}"
        raise BadSample(shard, key, why, "bounds")
    # As a build writes them; others' texts may be decomposed, or have several lines.
    facts["text"] = unicodedata.normalize("NFC", " ".join(text.splitlines()))
    return facts
