"""Recordings, and their results.

Recording ──► Piece, Piece, … ──► Result ── segments: Segment ── start, end (s), text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from salsa_dist.data.clip import Clip
from salsa_dist.speech_llms import long_audio
from salsa_dist.speech_llms.batch import Transcript

AUTO = "auto"  # a language that the base is to tell


@dataclass(frozen=True)
class Recording:
    """One recording to transcribe.

    Attributes:
        name: what results and errors call it.
        source: whatever `audio_input.blocks` takes.
        language: its code; AUTO: the base detects it.
        row: the bank's row of its adapter, -1 for none; None: the one of its language.
        weight: its share of the work, such as its bytes.
        file: where its result goes below a folder of results, without an ending.
        wrong: why it can't be transcribed, where that is known before it is read.
        done: its first pieces in which somebody speaks, from a process that was stopped.
    """

    name: str
    source: Any
    language: str
    row: int | None = None
    weight: int = 0
    file: str = ""
    wrong: str | None = None
    done: Sequence[Segment] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a recording that fits the base's window.

    Attributes:
        start, end: seconds in the recording.
        clip: its audio; None: it has no speech, or `wrong` says why there is none.
        last: the recording ends with it.
        wrong: the recording can't be read any further.
        share: of the recording, up to its end; None: not known.
    """

    recording: Recording
    start: float
    end: float
    clip: Clip | None
    last: bool
    wrong: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Segment:
    """The text of one piece; `finished` is false where the token limit cut it off."""

    start: float
    end: float
    text: str
    finished: bool


@dataclass(frozen=True)
class Result:
    """The result of a recording.

    Attributes:
        name: the recording's.
        language: as it was given, or as the base told it.
        adapter: name of the adapter that steered; None for none.
        seconds: how long it is; up to where it could be read.
        segments: its pieces in which somebody speaks.
        error: why there is no transcript; None: there is.
    """

    recording: Recording
    language: str
    adapter: str | None
    seconds: float
    segments: Sequence[Segment]
    error: str | None = None

    @property
    def name(self) -> str:
        return self.recording.name

    @property
    def text(self) -> str:
        """The whole transcript; empty without speech, or after an error."""
        texts = [Transcript(s.text, s.finished) for s in self.segments]
        return long_audio.joined(texts, self.language).text if texts else ""

    @property
    def finished(self) -> bool:
        """Whether no piece was cut off by the token limit."""
        return all(segment.finished for segment in self.segments)
