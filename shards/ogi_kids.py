"""Recipe: CSLU: Kids' Speech 1.1 (OGI Kids, LDC2007S18), kindergarten to grade 10.

Source: the release's folder:

    docs/all.map                                       AB "a prompt's text"
    speech/scripted/00/0/ks001/ks001ab0.wav            grade, group, child; 16 kHz
    speech/spontaneous/00/0/ks001/ks001xx0.wav
    trans/spontaneous/00/0/ks001/ks001xx0.txt          what was said
    verify/…-verified.txt                              PATH/ks001ab0.wav 1

Folders are those of the release's readme.txt; file names as Lhotse (recipes/cslu_kids.py) and
SpeechBrain read them: `ks`, a letter or digit of the grade, two of the child, two of the prompt, 0. Of
the verifications (https://catalog.ldc.upenn.edu/docs/LDC2007S18/verification-note.txt) 1 is good, 2 has
other sounds beside the target, 3 lacks it, 4 is good with a puff of air: 2 and 3 are left out, what was
not verified stays. The release has no splits, so whole children are dealt. Recordings of spontaneous
speech last about a minute: give the base's window with --max-seconds, or cut them first. Licence:
https://catalog.ldc.upenn.edu/LDC2007S18.
"""

from __future__ import annotations

import re
from pathlib import Path

from salsa_dist.corpus.manifest import lines, read_text
from salsa_dist.corpus.texts import Texts, ogi
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "CSLU Agreement (licensed by the LDC; not to be passed on)"
_PROMPT = re.compile(r'(\w{2})\s+"(.*)"')
_GOOD = ("1", "4")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Scripted speech that was said as asked, and spontaneous speech with its transcript."""
    speech, table = source / "speech", source / "docs" / "all.map"
    if not speech.is_dir() or not table.is_file():
        raise UserError(f"{source} holds no speech and docs/all.map: name the folder of LDC2007S18")
    if missing := [kind for kind in ("scripted", "spontaneous") if not (speech / kind).is_dir()]:
        raise UserError(f"{speech} holds no {' and '.join(missing)}: is it unpacked whole?")
    texts, said = Texts(ogi.RULES), prompts(table)
    verified = verifications(source / "verify")
    found = []
    for audio in sorted(speech.glob("*/*/*/*/*.wav")):
        kind, grade, group, child = audio.relative_to(speech).parts[:4]
        if kind == "scripted":
            if verified.get(audio.stem, "1") not in _GOOD:
                texts.drop("en", f"verified as {verified[audio.stem]}")
                continue
            prompt = audio.stem[5:7].upper()
            if prompt not in said:
                raise UserError(f"{table}: no prompt {prompt}, which {audio.name} is of")
            text: str | None = said[prompt]
        else:
            written = source / "trans" / kind / grade / group / child / f"{audio.stem}.txt"
            if not written.is_file():
                texts.drop("en", "no transcript")
                continue
            text = texts.clean(read_text(written), "en")
        if text:
            extra = {"grade": int(grade) if grade.isdigit() else grade, "style": kind}
            name = key(f"{kind}/{audio.stem}")
            found.append(Utterance(name, audio, text, "en", speaker=child, extra=extra))
    for written in sorted((source / "trans").glob("*/*/*/*/*.txt")):
        place = written.relative_to(source / "trans").with_suffix(".wav")
        if not (speech / place).is_file():
            texts.drop("en", "no recording", written)
    if not found:
        raise UserError(f"{speech} holds no STYLE/GRADE/GROUP/CHILD/*.wav: is it unpacked whole?")
    return texts.corpus(found, LICENCE, "CSLU: Kids' Speech 1.1, LDC2007S18, from the LDC")


def prompts(table: Path) -> dict[str, str]:
    """Text by code, of all.map."""
    said = {}
    for number, line in lines(table):
        match = _PROMPT.fullmatch(line.strip())
        if not match:
            raise UserError(f"{table}, line {number}: not a code and a text in quotes")
        said[match[1].upper()] = match[2]
    return said


def verifications(folder: Path) -> dict[str, str]:
    """1 to 4 by name of recording."""
    found = {}
    for path in sorted(folder.rglob("*-verified.txt")):
        for number, line in lines(path):
            name, _, mark = line.strip().rpartition(" ")
            if mark not in ("1", "2", "3", "4"):
                raise UserError(f"{path}, line {number}: ends with {mark!r}, not with 1 to 4")
            found[Path(name.strip()).stem] = mark
    return found
