"""Makes one shard of a build: utterances in, a tar out. Runs in any process and needs only its task.

Task ── recipe, path in the folder, split, language, utterances, ask, licence, source
  │     pack: decode the part, mix down, resample, FLAC; or the recording's bytes as they came
  ▼
Made ── Shard, dropped [(key, why)]        and beside the tar, for a build that goes on: PATH.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salsa_dist.corpus import doubts
from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.text import clean
from salsa_dist.corpus.utterance import Ask, Utterance
from salsa_dist.corpus.writer import Packed, marks, write_tar
from salsa_dist.data.audio import BadAudio, channels, flac, kind_of, mono, resample, resampler
from salsa_dist.data.file_hash import sha256_of
from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.shards import AUDIO_KINDS, MAX_BYTES
from salsa_dist.errors import UserError
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/made-shard/1"


@dataclass(frozen=True)
class Task:
    """Everything that decides the bytes of one shard."""

    recipe: str
    path: str
    split: str
    language: str
    utterances: tuple[Utterance, ...]
    ask: Ask
    licence: str
    source: str

    @property
    def digest(self) -> str:
        """Equal for two tasks that make the same bytes; files that changed make another."""
        digest = hashlib.sha256()
        ask = self.ask
        head = (self.recipe, self.path, ask.rate, ask.min_seconds, ask.max_seconds, ask.keep)
        digest.update(repr((*head, self.licence, self.source, resampler())).encode())
        recipe = load_recipe(self.recipe)
        if hasattr(recipe, "audio_of") and recipe.__file__:  # what it makes is decided by its code
            digest.update(Path(recipe.__file__).read_bytes())
        made_of = getattr(recipe, "made_of", lambda utterance: ())
        for u in self.utterances:
            about = (*(getattr(u, name) for name in u.__slots__ if name != "extra"), dict(u.extra))
            digest.update(repr(about).encode("utf-8", "surrogatepass"))
            digest.update(repr(_stamp(u.audio)).encode())
            digest.update("".join(repr(_stamp(path)) for path in made_of(u)).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Made:
    """A finished shard (None: it has no samples), and the dropped utterances."""

    shard: Shard | None
    dropped: tuple[tuple[str, str], ...]


def make(task: Task, folder: Path) -> Made:
    """Write the shard of `task` below `folder`, and the note that lets a later build keep it."""
    digest = task.digest  # before the files are read: one that changes meanwhile is read again
    dropped: list[tuple[str, str]] = []
    shard = write_tar(folder, task.path, task.split, task.language, _packed(task, dropped))
    made = Made(shard if shard.samples else None, tuple(dropped))
    note: dict[str, Any] = {"schema": SCHEMA, "digest": digest, "dropped": dropped, "shard": None}
    if made.shard:
        note["shard"] = asdict(made.shard)
    replace_file(_note(folder, task), json.dumps(note))
    return made


def kept(task: Task, folder: Path) -> Made | None:
    """The result of an earlier build for the same task, if its file is unchanged to the bit."""
    try:
        note = json.loads(_note(folder, task).read_text(encoding="utf-8"))
        if note["schema"] != SCHEMA or note["digest"] != task.digest:
            return None
        dropped = tuple((str(name), str(why)) for name, why in note["dropped"])
        if note["shard"] is None:
            return Made(None, dropped)
        entries = tuple(Entry(*entry.values()) for entry in note["shard"].pop("entries"))
        shard = Shard(**note["shard"], entries=entries)
        if sha256_of(folder / task.path) != shard.sha256:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Made(shard, dropped)


def _note(folder: Path, task: Task) -> Path:
    return folder / f"{task.path}.json"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # a name that no file can have
        return None
    return stat.st_size, stat.st_mtime_ns


def _packed(task: Task, dropped: list[tuple[str, str]]) -> Iterator[Packed]:
    """The samples of a task; `dropped` gets all other utterances."""
    for utterance in task.utterances:
        try:
            yield _pack(utterance, task)
        except UserError as e:
            place = f" ({utterance.place})" if utterance.place else ""
            dropped.append((utterance.key, f"{e}{place}"))


def _pack(utterance: Utterance, task: Task) -> Packed:
    """Make one sample. Raises: UserError: the reason why not; the part before the colon is the kind."""
    text = clean(utterance.text)
    if not text and utterance.speech:
        raise UserError("no text")
    audio_of = getattr(load_recipe(task.recipe), "audio_of", None)
    try:
        source = audio_of(utterance) if audio_of else utterance.audio
    except UserError as e:
        raise UserError(f"unreadable audio: {e}") from e
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"audio file is missing: {source}")
    ask = task.ask
    whole = (utterance.start, utterance.end, utterance.channel) == (None, None, None)
    if utterance.end is None:
        _refuse(doubts.of_header(source), ask)
    as_it_came = ask.rate is None and whole
    raw = _bytes_of(source) if as_it_came else b""
    name = "audio in memory" if isinstance(source, bytes) else str(source)
    try:
        several, rate = channels(
            raw if as_it_came else source,
            name,
            start=utterance.start or 0.0,
            end=utterance.end,
            channel=utterance.channel,
            max_seconds=ask.max_seconds,
        )
    except BadAudio as e:
        kind = "too long" if e.kind == "length" else "unreadable audio"
        raise UserError(f"{kind}: {e}") from e
    kind = kind_of(raw) if as_it_came else "flac"
    if kind not in AUDIO_KINDS:
        raise UserError(f"not a kind that shards hold: {kind}")
    seconds = len(several) / rate
    if seconds >= ask.min_seconds:
        _refuse(doubts.of_audio(several, rate, text, utterance.speech), ask)
        if not as_it_came:
            audio, rate = resample(mono(several), rate, ask.rate or rate), ask.rate or rate
            raw, seconds = flac(audio, rate), len(audio) / rate
    if seconds < ask.min_seconds:
        raise UserError(f"too short: {seconds:.3f} s")
    if seconds > ask.max_seconds:
        raise UserError(f"too long: {seconds:.3f} s")
    facts: dict[str, Any] = {
        "text": text,
        "language": utterance.language,
        "speaker": utterance.speaker,
        "seconds": seconds,
        "licence": task.licence,
        "source": task.source,
        **marks(utterance),
    }
    if utterance.extra:
        facts["extra"] = dict(utterance.extra)
    return Packed(utterance.key, kind, raw, facts, seconds)


def _refuse(doubt: str | None, ask: Ask) -> None:
    if doubt and doubts.kind_of(doubt) not in ask.keep:
        raise UserError(doubt)


def _bytes_of(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if source.stat().st_size > MAX_BYTES:
        raise UserError(f"too long: {source} has more than {MAX_BYTES} bytes")
    return source.read_bytes()
