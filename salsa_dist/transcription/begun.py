"""Stores the finished pieces of a recording on disk, so that a long recording resumes after a stop.

    .NAME.begun.jsonl    beside the result; a line per piece, deleted once the result is there

Where a recording is cut depends on its audio and the window alone, so the same pieces come again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from salsa_dist import jsonl
from salsa_dist.transcription.recording import Recording, Segment

SCHEMA = "salsa-dist/begun/1"


class Begun:
    """Pieces of one recording at a time, for the result `out`."""

    def __init__(self, out: Path) -> None:
        self._path = out.with_name(f".{out.name}.begun.jsonl")

    def resumed(self, recording: Recording) -> Recording:
        """`recording` with its pieces from earlier processes.

        Raises:
            UserError: the file is damaged.
        """
        done, language = [], recording.language
        try:
            for line in jsonl.read(self._path, SCHEMA, "delete it"):
                if (line["file"], line["bytes"]) == (recording.name, recording.weight):
                    language = line["language"]
                    done.append(Segment(line["start"], line["end"], line["text"], line["finished"]))
        except FileNotFoundError:
            pass
        return replace(recording, language=language, done=done) if done else recording

    def add(self, recording: Recording, language: str, segment: Segment) -> None:
        """Add a piece of `recording`, in the given or detected language."""
        about = {"schema": SCHEMA, "file": recording.name, "bytes": recording.weight}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with jsonl.appending(self._path) as file:
            file.write(json.dumps({**about, "language": language, **vars(segment)}) + "\n")

    def end(self) -> None:
        """The result is there, or there will be none."""
        self._path.unlink(missing_ok=True)
