"""Recipe: Kaldi data folders.

Source: a data folder, or a folder of them (train/, dev/, test/: their names tell the splits).

    wav.scp     RECORDING  a.wav              text       UTTERANCE  the words …
    segments    UTTERANCE RECORDING 1.5 4.25  utt2spk    UTTERANCE SPEAKER       (segments: optional)
    spk2gender SPEAKER f    (optional)        utt2lang   UTTERANCE LANGUAGE      (else --language)

as in https://kaldi-asr.org/doc/data_prep.html. Paths are relative to the data folder, or, where nothing
lies there, to the folder that the build was started in, as Kaldi has them. A wav.scp may hold commands
(`sph2pipe … |`): none is ever run, and such a folder is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.utterance import (
    Ask,
    Corpus,
    Drops,
    Utterance,
    key,
    refuse_other_splits,
    split_in,
)
from salsa_dist.errors import UserError


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every utterance that has a text, of all data folders below `source`."""
    folders = sorted(path.parent for path in source.rglob("wav.scp"))
    if not folders:
        raise UserError(f"{source} holds no wav.scp: name a Kaldi data folder, or one of several")
    found: list[Utterance] = []
    drops = Drops()
    for folder in folders:
        split = split_in(folder.name)
        found += data_folder(folder, split, ask, drops)
    parts = {(u.language, u.table.parent.name): u.table.parent for u in found if u.table}
    refuse_other_splits(parts, "rename the folder, or move it elsewhere")
    said = f"Kaldi data folder {source.name}"
    return Corpus(found, "not stated", said, dropped=drops.counts, first=drops.first)


def data_folder(folder: Path, split: str | None, ask: Ask, drops: Drops) -> list[Utterance]:
    """The utterances of one data folder; those without a text, and texts without a recording, are
    counted in `drops`."""
    scp, segments, text = (folder / name for name in ("wav.scp", "segments", "text"))
    recordings = table(scp)
    for name, recording in recordings.items():
        if recording.rest.endswith("|") or recording.rest.startswith("|"):
            raise UserError(
                f"{scp}, line {recording.number}: {name} is a command, and no command is run: write "
                "the audio to files first (Kaldi's wav-copy does)"
            )
    texts = table(text)
    speakers = _optional(folder / "utt2spk")
    languages = _optional(folder / "utt2lang")
    of_speaker = _optional(folder / "spk2gender")
    gender = {name: of_speaker[who] for name, who in speakers.items() if of_speaker.get(who)}
    if segments.exists():
        parts = {name: _segment(segments, name, line) for name, line in table(segments).items()}
    else:
        parts = {name: Part(name, None, None, line.number) for name, line in recordings.items()}
    for name in sorted(texts.keys() - parts.keys()):
        spoken = languages.get(name) or ask.language or "any"
        drops.add(spoken, "no recording", f"{text}, line {texts[name].number}: {name}")
    found = []
    for name, part in parts.items():
        language = languages.get(name) or ask.language
        if not language:
            raise UserError(f"{folder}: no language for {name}: give --language, or add utt2lang")
        if part.recording not in recordings:
            raise UserError(
                f"{segments}, line {part.line}: {name} is of {part.recording}, not in wav.scp"
            )
        said = texts.get(name)
        if said is None or not said.rest:
            where = f"{text}, line {said.number}" if said else str(text)
            drops.add(language, "no text", f"{where}: {name}")
            continue
        audio = Path(recordings[part.recording].rest)
        beside = folder / audio
        found.append(
            Utterance(
                key=key(name),
                audio=beside if beside.exists() or not audio.exists() else audio,
                text=said.rest,
                language=language,
                speaker=speakers.get(name),
                split=split,
                start=part.start,
                end=part.end,
                table=scp if part.start is None else segments,
                line=part.line,
                extra={"gender": gender[name]} if name in gender else {},
            )
        )
    return found


class Line(NamedTuple):
    """What follows the name in a line of a table, and the line's number."""

    number: int
    rest: str


class Part(NamedTuple):
    """A recording's name, start and end in seconds (None for its own), and the line that says so."""

    recording: str
    start: float | None
    end: float | None
    line: int


def table(path: Path) -> dict[str, Line]:
    """`name rest of the line`, by name. Raises: UserError: missing, or a name that is there twice."""
    if not path.is_file():
        raise UserError(f"{path} is missing: a Kaldi data folder has it")
    found: dict[str, Line] = {}
    for number, line in lines(path):
        name, _, rest = line.strip().partition(" ") if " " in line.strip() else (line.strip(), "", "")
        if "\t" in name:
            name, _, rest = line.strip().partition("\t")
        if name in found:
            raise UserError(f"{path}, line {number}: {name} is there twice")
        found[name] = Line(number, rest.strip())
    return found


def _optional(path: Path) -> dict[str, str]:
    return {name: line.rest for name, line in table(path).items()} if path.exists() else {}


def _segment(segments: Path, name: str, line: Line) -> Part:
    cells = line.rest.split()
    try:
        recording, start, end = cells[0], float(cells[1]), float(cells[2])
        # Kaldi writes -1 for the end of the recording.
        until = None if end == -1 else end
        if not (math.isfinite(end) and 0 <= start < (math.inf if until is None else until)):
            raise ValueError
    except (ValueError, IndexError) as e:
        raise UserError(
            f"{segments}, line {line.number}: {name} has {line.rest!r}, not a recording, its start and "
            "its end"
        ) from e
    return Part(recording, start, until, line.number)
