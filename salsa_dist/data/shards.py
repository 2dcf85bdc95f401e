"""Tar shards: reading one sample out of its byte range.

A shard is a plain WebDataset tar; a sample is a few files that lie side by side in it. `writer.py`
writes the first kind; others' tars of speech have the second, and are read as well:

    KEY.flac    mono, 16 bit                     KEY.wav     or flac, mp3, ogg, opus; any rate
    KEY.json    {"text", "language", …}          KEY.txt     or KEY.json with a text

    Entry(offset, length) ──read_range──► bytes ──read_sample──► (samples,) float32, {text, …}

What else a foreign tar holds is skipped unread; what can run code when decoded (pickles and their
like) is refused.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile

from salsa_dist.data.audio import Audio, decode, resample
from salsa_dist.data.index import Entry
from salsa_dist.data.utterance import MAX_SECONDS
from salsa_dist.errors import UserError

SAMPLE_RATE = 16_000  # Hz, of what is read
RATES = (4_000, 384_000)  # Hz, lowest and highest of what lies in a shard
MAX_BYTES = 256 << 20  # of one sample in the tar: 600 s of 48 kHz stereo fit
AUDIO_KINDS = ("flac", "wav", "mp3", "ogg", "opus")
KINDS = (*AUDIO_KINDS, "json", "txt")
DANGEROUS_KINDS = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "joblib")
TEXT_FIELDS = ("text", "transcript", "transcription", "sentence")

# WebDataset's own rule: the key ends at the first dot of the file's name.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<kind>[^/]*)", re.DOTALL)


class BadSample(UserError):
    """One sample of a shard that can't be used; names the shard and the key."""

    def __init__(self, shard: str | Path, key: str | None, what: str) -> None:
        super().__init__(f"{shard}: sample {key or 'without a key'} {what}")
        self.shard, self.key = str(shard), key


def read_range(path: str | Path, entry: Entry) -> bytes:
    """The bytes of one sample: one seek, one read."""
    if entry.length > MAX_BYTES:
        raise BadSample(path, entry.key, f"claims {entry.length} bytes, more than {MAX_BYTES}")
    try:
        with open(path, "rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.length)
    except OSError as e:
        raise BadSample(path, entry.key, f"can't be read ({e.strerror})") from None
    if len(raw) != entry.length:
        raise BadSample(path, entry.key, "lies behind the end of its tar: fetch the shard again")
    return raw


def read_sample(
    raw: bytes, shard: str | Path = "shard in memory", key: str | None = None
) -> tuple[Audio, dict[str, Any]]:
    """Audio `(samples,)` float32 at 16,000 Hz and the JSON facts of the sample in `raw`.

    With `key`, another sample's bytes are refused; `shard` is what errors call the tar.
    """
    if len(raw) > MAX_BYTES:
        raise BadSample(shard, key, f"has {len(raw)} bytes, more than {MAX_BYTES}")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                stem, kind = key_and_kind(member.name)
                if kind in DANGEROUS_KINDS or not member.isreg() or member.issparse():
                    raise BadSample(shard, key, f"holds {member.name!r}, no plain audio or text")
                if kind in files or (key is not None and stem != key):
                    raise BadSample(shard, key, f"holds {member.name!r} too: the index is wrong")
                key = stem
                if kind not in KINDS:
                    continue
                content = tar.extractfile(member)
                files[kind] = content.read(MAX_BYTES) if content else b""
                if len(files[kind]) != member.size:
                    raise BadSample(shard, key, f"is cut off in its {kind}")
    except (tarfile.TarError, ValueError, EOFError) as e:
        raise BadSample(shard, key, f"is no piece of a tar ({e})") from None
    audio, rate = open_audio(files, shard, key)
    return resample(audio, rate, SAMPLE_RATE), read_facts(files, shard, key)


def key_and_kind(name: str) -> tuple[str, str]:
    """What WebDataset makes of a file's name: `bg/a.seg.FLAC` is sample `bg/a`, kind `seg.flac`."""
    match = _MEMBER.fullmatch(name)
    return (match["key"], match["kind"].lower()) if match else (name, "")


def open_audio(files: Mapping[str, bytes], shard: str | Path, key: str | None) -> tuple[Audio, int]:
    """`(samples,)` float32 and its rate in Hz, of a sample's files by kind. Raises: BadSample."""
    kind = next((kind for kind in AUDIO_KINDS if kind in files), None)
    if kind is None:
        raise BadSample(shard, key, f"lacks audio: it has none of {', '.join(AUDIO_KINDS)}")
    try:
        with soundfile.SoundFile(io.BytesIO(files[kind])) as file:
            rate, claimed = file.samplerate, file.frames / file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError, ZeroDivisionError) as e:
        raise BadSample(shard, key, f"has unreadable audio ({' '.join(str(e).split())})") from None
    if not RATES[0] <= rate <= RATES[1]:
        raise BadSample(shard, key, f"has a rate of {rate} Hz, not one from {RATES[0]} to {RATES[1]}")
    # Never more than the limit, whatever the header claims.
    if claimed > MAX_SECONDS:
        raise BadSample(shard, key, f"claims more than {MAX_SECONDS:.0f} s of audio")
    try:
        return decode(files[kind], "it")
    except UserError as e:
        raise BadSample(shard, key, f"has unreadable audio ({e})") from None


def read_facts(files: Mapping[str, bytes], shard: str | Path, key: str | None) -> dict[str, Any]:
    """The facts of a sample, by its files; its transcript is "text". Raises: BadSample."""
    try:
        facts = json.loads(files.get("json", b"{}"))
        if "txt" in files:
            facts["text"] = files["txt"].decode("utf-8").strip()
    except (ValueError, TypeError, RecursionError) as e:
        raise BadSample(shard, key, f"has damaged JSON or text ({e})") from None
    text = next((facts[f] for f in TEXT_FIELDS if f in facts), None) if type(facts) is dict else None
    if not isinstance(text, str):
        raise BadSample(shard, key, "has no text in its JSON, and no .txt")
    if not text.strip():
        raise BadSample(shard, key, "has an empty transcript")
    facts["text"] = text
    return facts
