"""Finds the recordings that command-line arguments stand for.

    a.ogg  DIR  'b/*.m4a'  c.tar  SHARDS  -  ──found──► Input, Input, …   paths; nothing is opened yet
    Input ──recordings──► Recording, …                                    a tar gives one a sample

A line of a list (`-`: standard input) is a path; or a path, a language and perhaps an adapter's name
with tabs between; or a JSON object with "audio", "language", "adapter". Its own language counts more
than one for all; so does a sample's in a tar.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from salsa_dist.corpus.archive import unsafe_name
from salsa_dist.corpus.tar_samples import found as samples_of
from salsa_dist.data.audio_input import SUFFIXES
from salsa_dist.data.shards import AUDIO_KINDS
from salsa_dist.errors import UserError
from salsa_dist.transcription.recording import Recording

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Input:
    """One file that was named or found.

    Attributes:
        path: as the user would name it.
        file: the same without the folder that was named, for a folder of results.
        weight: its bytes; 0 where there is no such file.
        language, adapter: what a list says of it; None: nothing.
    """

    path: str
    file: str
    weight: int
    language: str | None = None
    adapter: str | None = None


def found(names: Sequence[str], stdin: IO[bytes]) -> list[Input]:
    """All files that `names` stand for, in their order, each once.

    Raises:
        UserError: a folder or pattern has no audio, a line of the list is none, or a file is named
            for two languages or adapters.
    """
    inputs: dict[str, Input] = {}
    for name in names:
        for one in _of_list(stdin) if name == STANDARD_INPUT else _of_name(name):
            before = inputs.setdefault(one.path, one)
            if (before.language, before.adapter) != (one.language, one.adapter):
                raise UserError(
                    f"{one.path} is named twice, with another language or adapter: name it once"
                )
    if not inputs:
        raise UserError("no recording is named: name files, folders, patterns, tars or - for a list")
    return list(inputs.values())


def recordings(
    inputs: Iterable[Input],
    language_of: Callable[[str, str | None], str],
    row_of: Callable[[str, str | None], int | None],
) -> Iterator[Recording]:
    """The recordings of `inputs`, tars opened one after another.

    Args:
        language_of: from a name, and the language that its list or tar says, to the one to use.
        row_of: from a name, and the adapter that its list names, to its row; None: by the language.
    """
    for one in inputs:
        name, wrong, row, language = one.path, None, None, ""
        try:
            row = row_of(name, one.adapter)
            if one.path.lower().endswith(".tar") and os.path.isfile(one.path):
                yield from _of_tar(one, language_of, row)
                continue
            language = language_of(name, one.language)
        except UserError as e:
            wrong = str(e)
        yield Recording(name, name, language, row, one.weight, one.file, wrong)


def _of_tar(
    one: Input, language_of: Callable[[str, str | None], str], row: int | None
) -> Iterator[Recording]:
    before = 0
    try:
        for sample in samples_of(Path(one.path)):
            name = f"{one.path}:{sample.key}"
            weight, before = sample.offset + sample.length - before, sample.offset + sample.length
            audio = next((sample.files[k] for k in AUDIO_KINDS if k in sample.files), None)
            file = f"{one.file}/{sample.key}"
            language, wrong = "", None
            if sample.notes or unsafe_name(sample.key):
                wrong = f"{name} {'; '.join(sample.notes) or 'has an unsafe name'}"
            elif audio is None:
                wrong = f"{name} lacks audio: it has none of {', '.join(AUDIO_KINDS)}"
            else:
                try:
                    language = language_of(name, one.language or _language_in(sample.files))
                except UserError as e:
                    wrong = str(e)
            yield Recording(name, audio, language, row, weight, file, wrong)
    except (UserError, OSError) as e:
        wrong = str(e) if isinstance(e, UserError) else f"{one.path} can't be read ({e.strerror})"
        yield Recording(one.path, None, "", row, 0, one.file, wrong)


def _language_in(files: Mapping[str, bytes]) -> str | None:
    try:
        facts = json.loads(files.get("json", b"{}"))
    except (ValueError, RecursionError):
        return None
    language = facts.get("language") if isinstance(facts, dict) else None
    return language if isinstance(language, str) else None


def _of_name(name: str) -> Iterator[Input]:
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        yield from _some(_in_folder(name), f"{name} holds no audio files or tars")
    elif glob.has_magic(name) and not os.path.lexists(name):
        matches = sorted(glob.glob(name, recursive=True))
        files = (
            one
            for match in matches
            for one in (
                _in_folder(match) if os.path.isdir(match) else [_input(match, os.path.basename(match))]
            )
        )
        yield from _some(files, f"no file matches {name}")
    else:
        yield _input(name, os.path.basename(name))


def _some(inputs: Iterator[Input], none: str) -> Iterator[Input]:
    some = False
    for one in inputs:
        some = True
        yield one
    if not some:
        raise UserError(none)


def _in_folder(folder: str) -> Iterator[Input]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            kind = file.rpartition(".")[2].lower()
            if not file.startswith(".") and (kind in SUFFIXES or kind == "tar"):
                path = os.path.join(parent, file)
                yield _input(path, os.path.relpath(path, folder))


def _input(path: str, file: str, language: str | None = None, adapter: str | None = None) -> Input:
    try:
        weight = os.stat(path).st_size
    except (OSError, ValueError):
        weight = 0  # said when it is its turn: the others go on
    return Input(path, os.path.splitext(file)[0], weight, language, adapter)


def _of_list(stdin: IO[bytes]) -> Iterator[Input]:
    raw = stdin.read()
    for number, line in enumerate(raw.split(b"\0" if b"\0" in raw else b"\n"), 1):
        text = os.fsdecode(line).rstrip("\r")
        if not text.strip():
            continue
        if text.startswith("{"):
            fields = _object(text, number)
        else:
            fields = [field or None for field in text.split("\t")]
        if not 1 <= len(fields) <= 3 or fields[0] is None:
            raise UserError(
                f"line {number} of the list has {len(fields)} columns: a path, and perhaps a language "
                "and an adapter's name"
            )
        language, adapter = (*fields[1:], None, None)[:2]
        yield _input(fields[0], os.path.basename(fields[0]), language, adapter)


def _object(text: str, number: int) -> list[str | None]:
    try:
        tree = json.loads(text)
        fields = [tree.get(key) for key in ("audio", "language", "adapter")]
    except (ValueError, RecursionError, AttributeError):
        fields = [None]
    if fields[0] is None or not all(isinstance(f, str) for f in fields if f is not None):
        raise UserError(
            f'line {number} of the list needs "audio"; "language" and "adapter" are optional texts'
        )
    return fields
