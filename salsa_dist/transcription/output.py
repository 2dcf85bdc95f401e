"""Writes results to disk or to standard output, each when it is complete, in one of four formats.

    text   NAME <tab> TEXT                      a line a recording
    json   {"file", "text", "language", …}      a line a recording, schema salsa-dist/transcript/1
    srt, vtt                                    subtitles, a file a recording, cut where its pieces are

    --out x.txt, x.tsv, x.jsonl, x.json    one file; what it holds already is not done again
    --out FOLDER                           NAME.txt, .json, .srt or .vtt below it; the same

Of a recording in several pieces, `begun.py` keeps those that are there.

`.NAME.settings.json` beside the file, or in the folder, says what it was made with: other settings are
refused, so one result is never a mixture.
"""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from salsa_dist import jsonl
from salsa_dist.errors import UserError
from salsa_dist.transcription.begun import Begun
from salsa_dist.transcription.recording import Recording, Result, Segment
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/transcript/1"
FORMATS = ("text", "json", "srt", "vtt")
_ENDINGS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt"}
_SUBTITLES = ("srt", "vtt")
_ONE_FILE = {".txt": "text", ".tsv": "text", ".jsonl": "json", ".json": "json"}
_ONE_FILE |= {f".{form}": form for form in _SUBTITLES}  # which are refused


def form_of(out: Path | None, form: str | None, single: bool, ranks: int = 1) -> str:
    """The format of the results, one of FORMATS; reads and writes nothing.

    Args:
        out: file or folder; None: standard output.
        form: the one that was asked for; None: by the ending of `out`, else text.
        single: there is one recording only.
        ranks: how many processes write results at once; a file has lines of one only.

    Raises:
        UserError: there is no such format, or it does not fit `out`.
    """
    if form is not None and form not in FORMATS:
        raise UserError(f"--format {form}: choose one of {', '.join(FORMATS)}")
    if out is None:
        if form in _SUBTITLES and not single:
            raise UserError(f"--format {form} makes one file per recording: name a folder with --out")
        return form or "text"
    one = form_of_file(out)
    if one in _SUBTITLES:
        raise UserError(
            f"--out {out} is one file, and subtitles are one file per recording: name a folder, "
            f"with --format {one}"
        )
    if one and form and form != one:
        raise UserError(f"--out {out} ends as {one}, and --format is {form}: choose one")
    if one and ranks > 1:
        raise UserError(f"--out {out} is one file, and {ranks} ranks write: name a folder")
    return one or form or "text"


def output(out: Path | None, form: str, settings: Mapping[str, Any]) -> Output:
    """The destination of results.

    Args:
        out: file or folder; None: standard output.
        form: from `form_of`.
        settings: what the results depend on.

    Raises:
        UserError: `out` was made with other settings, or can't be written.
    """
    if out is None:
        return _Stdout(form)
    one = form_of_file(out) is not None
    try:
        (out.parent if one else out).mkdir(parents=True, exist_ok=True)
        return _File(out, form, settings) if one else _Folder(out, form, settings)
    except OSError as e:
        raise UserError(f"--out {out} can't be written ({e.strerror})") from e


def form_of_file(out: Path) -> str | None:
    """The format of `out` if it is one file; None: a folder."""
    return _ONE_FILE.get(out.suffix.lower()) if not out.is_dir() else None


class Output(ABC):
    """Writes results; `has` tells which results exist from before."""

    def has(self, recording: Recording) -> bool:
        return False

    def begun(self, recording: Recording) -> Begun | None:
        """Where finished pieces are stored until the recording's result is complete; None: nowhere."""
        return None

    @abstractmethod
    def write(self, result: Result) -> None:
        """Write a result without an error."""

    def close(self) -> None:
        return


class _Stdout(Output):
    def __init__(self, form: str) -> None:
        self._form = form

    def write(self, result: Result) -> None:
        sys.stdout.flush()
        _write(sys.stdout.buffer, written(result, self._form))


class _File(Output):
    """Lines in one file. An incomplete last line of a killed process is removed."""

    def __init__(self, path: Path, form: str, settings: Mapping[str, Any]) -> None:
        _agree(path.with_name(f".{path.name}.settings.json"), path, settings, path.exists())
        self._form, self._begun = form, Begun(path)
        jsonl.append(path).close()
        self._done = set(_names(path, form))
        self._file = open(path, "ab")  # noqa: SIM115

    def has(self, recording: Recording) -> bool:
        name = recording.name if self._form == "json" else _plain(recording.name)
        return name in self._done

    def begun(self, recording: Recording) -> Begun:
        return self._begun

    def write(self, result: Result) -> None:
        _write(self._file, written(result, self._form))

    def close(self) -> None:
        self._file.close()


class _Folder(Output):
    """A file a recording."""

    def __init__(self, folder: Path, form: str, settings: Mapping[str, Any]) -> None:
        of_form = {**settings, "format": form}
        _agree(folder / f".{form}.settings.json", folder, of_form, False)
        self._folder, self._form = folder, form
        self._names: dict[str, str] = {}

    def has(self, recording: Recording) -> bool:
        other = self._names.setdefault(recording.file, recording.name)
        if other != recording.name:
            raise UserError(
                f"{other} and {recording.name} would both be {self._path(recording)}: transcribe them "
                "into folders of their own, or into one .jsonl file"
            )
        return self._path(recording).exists()

    def begun(self, recording: Recording) -> Begun:
        return Begun(self._path(recording))

    def write(self, result: Result) -> None:
        path = self._path(result.recording)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = result.text + "\n" if self._form == "text" else written(result, self._form)
        replace_file(path, os.fsencode(content), flushed=False)

    def _path(self, recording: Recording) -> Path:
        return self._folder / f"{recording.file}.{_ENDINGS[self._form]}"


def _agree(file: Path, out: Path, settings: Mapping[str, Any], there: bool) -> None:
    """Refuse `out` if it was made with other settings; else write down these."""
    tree = {"schema": SCHEMA, **settings}
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        differ = [k for k in {**before, **tree} if before.get(k) != tree.get(k)]
        if differ:
            raise UserError(
                f"{out} was made with another {', '.join(differ)}: name another --out, or delete it "
                f"and {file}"
            )
    elif there:
        raise UserError(f"{out} is there and was not made by transcribe: name another --out")
    else:
        replace_file(file, json.dumps(tree, indent=1) + "\n")


def _names(path: Path, form: str) -> list[str]:
    """Names of the recordings that a file has."""
    if form == "json":
        return [str(line["file"]) for line in jsonl.read(path, SCHEMA, "delete it")]
    with open(path, "rb") as file:
        return [os.fsdecode(line.partition(b"\t")[0]) for line in file]


def written(result: Result, form: str) -> str:
    """A result as one of FORMATS; subtitles are a whole file, the others a line."""
    if form == "text":
        return f"{_plain(result.name)}\t{_plain(result.text)}\n"
    if form == "json":
        tree = {
            "schema": SCHEMA,
            "file": result.name,
            "text": result.text,
            "language": result.language,
            "adapter": result.adapter,
            "seconds": round(result.seconds, 3),
            "finished": result.finished,
            "segments": [
                {"start": round(s.start, 3), "end": round(s.end, 3), "text": s.text}
                for s in result.segments
            ],
        }
        # A name that is not UTF-8 has surrogates. They are escaped, so the line is valid JSON.
        surrogates = any(0xD800 <= ord(c) <= 0xDFFF for c in result.name)
        return json.dumps(tree, ensure_ascii=surrogates) + "\n"
    spoken = [segment for segment in result.segments if segment.text]
    cues = [_cue(segment, form) for segment in spoken]
    if form == "srt":
        return "".join(f"{i}\n{cue}\n" for i, cue in enumerate(cues, 1))
    return "WEBVTT\n\n" + "\n".join(cues)


def _cue(segment: Segment, form: str) -> str:
    times = f"{_clock(segment.start, form)} --> {_clock(segment.end, form)}"
    # An empty line or an arrow would end the cue.
    return f"{times}\n{_plain(segment.text).replace('-->', '→')}\n"


def _clock(seconds: float, form: str) -> str:
    whole, ms = divmod(round(seconds * 1000), 1000)
    mark = "," if form == "srt" else "."
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{ms:03}"


def _plain(text: str) -> str:
    """The text on one line, without tabs."""
    return " ".join(text.split()) if any(c in text for c in "\t\n\r\v\f\x85\u2028\u2029") else text


def _write(file: IO[bytes], text: str) -> None:
    file.write(os.fsencode(text))
    file.flush()
