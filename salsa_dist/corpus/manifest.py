"""Manifests: files with one utterance per row, with any column names.

    SOURCE: a manifest, or a folder of them; a file's name may tell its split (train.jsonl, dev.tsv)
    row {"audio_filepath": "a.wav", "text": "…", "lang": "bg"}  ──utterance──►  Utterance

Field by field the first known name that a row has is taken, unless the user names the column. What else
a row says in a word or a number, such as age and grade, goes along as the utterance's `extra`.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from salsa_dist.corpus.utterance import (
    Ask,
    Corpus,
    Drops,
    Utterance,
    key,
    refuse_other_splits,
    split_in,
)
from salsa_dist.data.shards import MAX_WEIGHT, half_character
from salsa_dist.errors import UserError

NAMES: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "audio_filepath", "audio_path", "path", "file", "file_name", "wav", "filename"),
    "text": ("text", "sentence", "transcript", "transcription", "raw_transcription"),
    "language": ("language", "lang", "locale", "lang_id"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "split": ("split", "subset"),
    "key": ("key", "id", "utt_id", "utterance_id"),
    "start": ("start", "offset", "begin"),
    "end": ("end",),
    "duration": ("duration",),
    "channel": ("channel",),
    "speech": ("speech",),
    "loss_weight": ("loss_weight",),
}
MAX_LINE = 16 << 20  # characters; what is longer is no line of a manifest
MAX_EXTRA, MAX_WORD = 32, 200  # columns of a row, and letters of a name or a text, that go along
_SIDES = {"left": 0, "l": 0, "a": 0, "right": 1, "r": 1, "b": 1}  # of stereo, and of a telephone call
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,6})?")
# What a sample's JSON says itself.
_TAKEN = {"text", "language", "speaker", "seconds", "licence", "source"}


@dataclass(frozen=True)
class Row:
    """One row with its place: errors name the place, and audio paths are relative to its file."""

    values: Mapping[str, Any]
    file: Path
    number: int
    unit: str = "line"  # what `number` counts

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


def files(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The manifests in `source`, sorted by name. Raises: UserError: there is none."""
    if source.is_file():
        return [source]
    found = sorted(path for path in source.iterdir() if path.name.lower().endswith(suffixes))
    if not found:
        raise UserError(f"{source} holds no {', '.join('*' + s for s in suffixes)}: name a manifest")
    return found


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, `.gz` or not, with their numbers; empty lines are skipped."""
    return ((number, line) for number, line in _every_line(path) if line.strip())


def cells(path: Path, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row of a table, with the number of the row's first line.

    Rows without a word in them are skipped.

    Args:
        path: CSV or TSV, UTF-8, `.gz` or not.
        quoted: CSV as in RFC 4180, where a cell in quotes may hold commas and line ends; else TSV, in
            which a quotation mark is an ordinary character.

    Raises:
        UserError: it can't be read, or a row's quotes do not fit.
    """
    every = (line for _, line in _every_line(path))
    if quoted:
        reader = csv.reader(every, strict=True)
    else:
        reader = csv.reader(every, delimiter="\t", quoting=csv.QUOTE_NONE)
    begins = 1
    try:
        for row in reader:
            if "".join(row).strip() or (quoted and len(row) > 1):
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as e:
        what = "CSV" if quoted else "TSV"
        raise UserError(f"{path}, line {begins}: no row of {what} ({e}): fix the file") from e


def _every_line(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with open_text(path) as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) >= MAX_LINE:
                    raise UserError(f"{path}, line {number} has more than {MAX_LINE} characters")
                yield number, line
    except UnicodeDecodeError as e:
        raise UserError(f"{path}, after line {number}: not UTF-8; convert it") from e
    except (OSError, EOFError) as e:
        raise UserError(f"{path} can't be read ({e})") from e


def read_text(path: Path) -> str:
    """A small UTF-8 file as one line. Raises: UserError: it can't be read."""
    return " ".join(line.strip() for _, line in lines(path))


def open_text(path: Path) -> IO[str]:
    """`path` for reading, unpacked on the way where its name ends with .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def json_rows(path: Path) -> Iterator[Row]:
    """One JSON object per line. Raises: UserError: a line is not a JSON object."""
    for number, line in lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        if (half := half_character(line, value)) is not None:
            raise UserError(f"{path}, line {number}: {half} is half a character: fix the text")
        yield Row(value, path, number)


def corpus(rows: Iterable[Row], ask: Ask, source: str) -> Corpus:
    """All rows as utterances; those that lack a text or an audio file are left out and counted.

    Raises:
        UserError: as `to_utterance`; or no row at all has a text, or an audio file.
    """
    found: list[Utterance] = []
    elsewhere: list[int] = []
    unnamed: list[int] = []
    drops = Drops()
    lacking: dict[str, UserError] = {}
    named: dict[tuple[str, str], str] = {}
    for row in rows:
        language = _word(row, ask, "language") or ask.language or "any"
        needed = ("audio", "text") if _speech(row, ask) else ("audio",)
        missing = next((field for field in needed if not _given(row, ask, field)), None)
        if missing:
            lacking.setdefault(missing, _lacks(row, missing))
            if ask.wants(language):
                drops.add(language, f"no {missing}", row.place)
            continue
        utterance = to_utterance(row, ask)
        if ask.wants(utterance.language) and (said := _split_name(row, ask)):
            named.setdefault((utterance.language, said), row.place)
        if utterance.text.strip() or not utterance.speech:
            if not _text(row, ask, "key"):
                unnamed.append(len(found))
                if _elsewhere(row, ask):
                    elsewhere.append(len(found))
            found.append(utterance)
        elif ask.wants(utterance.language):
            drops.add(utterance.language, "no text", row.place)
    if not found and lacking:
        raise next(iter(lacking.values()))
    refuse_other_splits(named, "rename it, or leave its rows out")
    _named_without_their_place(found, elsewhere)
    _named_apart(found, unnamed)
    return Corpus(found, "not stated", source, dropped=drops.counts, first=drops.first)


def _given(row: Row, ask: Ask, field: str) -> bool:
    return _value(row, ask, field) not in (None, "") and _text(row, ask, field) is not None


def _speech(row: Row, ask: Ask) -> bool:
    """False where the row says that nobody speaks."""
    return _word(row, ask, "speech").lower() not in ("false", "no", "0")


def _split_name(row: Row, ask: Ask) -> str:
    """What tells a row's split: its own column, else its file; empty where that column is empty."""
    columns = (ask.columns["split"],) if "split" in ask.columns else NAMES["split"]
    own = any(name in row.values for name in columns)
    return _word(row, ask, "split") if own else row.file.name


def _weight(row: Row, ask: Ask) -> float:
    weight = _number(row, ask, "loss_weight")
    if weight is not None and not 0 <= weight <= MAX_WEIGHT:
        raise UserError(f"{row.place}: loss_weight is {weight:g}: it must be from 0 to {MAX_WEIGHT:g}")
    return 1.0 if weight is None else weight


def _elsewhere(row: Row, ask: Ask) -> bool:
    """Whether the row's audio is in another folder than its manifest."""
    audio = Path(_text(row, ask, "audio") or "")
    return audio.is_absolute() and not audio.is_relative_to(row.file.parent.absolute())


def _named_without_their_place(found: list[Utterance], which: list[int]) -> None:
    """Keys of audio in another folder: its path below the folder that contains all audio."""
    if not which:
        return
    root = os.path.commonpath([found[i].audio.parent for i in which])
    for i in which:
        found[i] = replace(found[i], key=_key_of(found[i].audio.relative_to(root), found[i].start))


def _named_apart(found: list[Utterance], which: list[int]) -> None:
    """Different keys for different audio with the same name: channels, parts with the same start, files
    that differ in their ending."""
    alike: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i in which:
        alike[found[i].language, found[i].key].append(i)
    for (_, name), group in alike.items():
        apart = [(found[i].audio.name, found[i].end, found[i].channel) for i in group]
        if len(set(apart)) > 1:
            for i, what in zip(group, apart, strict=True):
                found[i] = replace(found[i], key=key(f"{name} {what}"))


def _key_of(audio: Path, start: float | None) -> str:
    part = "" if start is None else f"-{round(start * 1000):08d}"
    return key(audio.with_suffix("").as_posix().lstrip("/.") + part)


def to_utterance(row: Row, ask: Ask) -> Utterance:
    """Raises: UserError: the row names no audio, no text or no language, or times that can't be."""
    unknown = set(ask.columns) - set(NAMES)
    if unknown:
        raise UserError(
            f"--column: no field {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}"
        )
    audio, text = _text(row, ask, "audio"), _text(row, ask, "text")
    if not audio:
        raise _lacks(row, "audio")
    speech = _speech(row, ask)
    if text is None and speech:
        raise _lacks(row, "text")
    language = _word(row, ask, "language") or ask.language
    if not language:
        raise UserError(f"{row.place}: no language: give it with --language, or name its --column")
    if audio.startswith("|") or audio.endswith("|") or "://" in audio:
        raise UserError(f"{row.place}: {audio!r} is no file: fetch or write the audio first")
    start, end = _times(row, ask)
    named = _text(row, ask, "key")
    place, folder = Path(audio), row.file.parent.absolute()
    if place.is_absolute() and place.is_relative_to(folder):
        place = place.relative_to(folder)
    split = _word(row, ask, "split")
    return Utterance(
        key=key(named) if named else _key_of(place, start),
        audio=row.file.parent / audio,
        text=text or "",
        language=language,
        speaker=_word(row, ask, "speaker") or None,
        split=split_in(split) if split else split_in(row.file.name),
        start=start,
        end=end,
        channel=_channel(row, ask),
        table=row.file,
        line=row.number,
        extra=words_and_numbers(_others(row, ask)),
        speech=speech or bool((text or "").strip()),
        loss_weight=_weight(row, ask),
    )


def words_and_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The short texts, finite numbers and truth values in `values`, by name: at most 32.

    Empty ones, long texts, lists and trees are left out; nothing in them is ever more than data. A text
    that is written like a number is one, since tables know no other: 7, not 007.
    """
    kept: dict[str, Any] = {}
    for name in sorted(name for name in values if isinstance(name, str)):
        value = values[name]
        if isinstance(value, str):
            value = value.strip()
            if _NUMBER.fullmatch(value):
                value = float(value) if "." in value else int(value)
        sound = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        if not sound or value == "" or len(str(value)) > MAX_WORD or len(name) > MAX_WORD:
            continue
        if name.strip() and name not in _TAKEN and len(kept) < MAX_EXTRA:
            kept[name] = value
    return kept


def _others(row: Row, ask: Ask) -> dict[str, Any]:
    """The columns that are none of our fields."""
    known = {name for names in NAMES.values() for name in names} | set(ask.columns.values())
    return {name: value for name, value in row.values.items() if name not in known}


def _times(row: Row, ask: Ask) -> tuple[float | None, float | None]:
    """Start and end in seconds. A row with only a duration means the whole file."""
    start, end, duration = (_number(row, ask, field) for field in ("start", "end", "duration"))
    if end is None and start is not None and duration is not None:
        end = start + duration
    if (start is not None and start < 0) or (end is not None and end <= (start or 0.0)):
        raise UserError(f"{row.place}: no part of a recording goes from {start} s to {end} s")
    return start, end


def _number(row: Row, ask: Ask, field: str) -> float | None:
    value = _value(row, ask, field)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        unit = "" if field == "loss_weight" else " of seconds"
        raise UserError(f"{row.place}: {field} is {value!r}, no number{unit}")
    return number


def _channel(row: Row, ask: Ask) -> int | None:
    """The channel that is spoken on, from 0; None: none is named, or a word that is no side."""
    said = str(_value(row, ask, "channel")).strip().lower()
    number = _SIDES.get(said.removesuffix(".0"), said.removesuffix(".0"))  # tables may have 1.0
    return int(number) if str(number).isdecimal() else None


def _word(row: Row, ask: Ask, field: str) -> str:
    """A name or code, without the spaces around it; empty where the row has none."""
    return (_text(row, ask, field) or "").strip()


def _text(row: Row, ask: Ask, field: str) -> str | None:
    value = _value(row, ask, field)
    if isinstance(value, float) and math.isnan(value):
        return None  # what pandas writes where there is none
    if value is None or isinstance(value, (str, int)):
        return None if value is None else str(value)
    raise UserError(f"{row.place}: {field} is {str(value)[:60]!r}, no text")


def _value(row: Row, ask: Ask, field: str) -> Any:
    if named := ask.columns.get(field):
        if named not in row.values:
            raise UserError(f"{row.place}: no column {named!r}: it has {', '.join(row.values)}")
        return row.values[named]
    found = [row.values[name] for name in NAMES[field] if name in row.values]
    return next((value for value in found if value not in ("", None)), found[0] if found else None)


def _lacks(row: Row, field: str) -> UserError:
    there = ", ".join(map(str, row.values))[:200]
    return UserError(f"{row.place}: no {field} among {there}: name its column with --column {field}=…")
