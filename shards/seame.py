"""Recipe: SEAME, Mandarin-English Code-Switching in South-East Asia (LDC2015S04).

Source: the release's folder, or its `data` folder:

    data/conversation/audio/01NC01FBX_0101.flac             16 kHz; or .sph, .wav
    data/conversation/transcript/phaseII/01NC01FBX_0101.txt
    data/interview/…                                        the same
    SEAME-dev-set/dev_man/text, dev_sge/text, train/wav_file.txt      where they were put beside it

    01NC01FBX_0101  2100  5230  CS  那个 then 我们 go lor
    recording       start and end in ms, language, text

Folders and the five columns (tabs; four, without the language, in phaseI, which phaseII holds too) as
ESPnet's egs2/seame and Kaldi recipes read them; https://catalog.ldc.upenn.edu/LDC2015S04 says FLAC,
UTF-8 and tabs. Its dev_man and dev_sge (https://github.com/zengzp0912/SEAME-dev-set; Zeng et al.,
Interspeech 2019) name segments as SPEAKER-RECORDING-START-END, in hundredths of a second. Both become
`test`, told apart by `set`: `salsa-dist report RUN --by set`. All else of their speakers is dropped,
and all recordings that train/wav_file.txt, where it is there, does not name. The rest is `train`, but
for whole speakers who are dealt to `dev`: no set to choose by is published. Without these files whole
speakers are dealt to all three. Texts: `salsa_dist/corpus/texts/seame.py`. Licence:
https://catalog.ldc.upenn.edu/LDC2015S04.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.texts import Texts, seame
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "LDC User Agreement for Non-Members (licensed by the LDC; not to be passed on)"
LANGUAGE = "zh-en"
SETS = ("dev_man", "dev_sge")
NEAR = 3  # hundredths of a second by which two lists round the same time apart
MAX_LOST = 0.1  # of a dev set; with more it is no list of these transcripts
# Start, end (hundredths of a second) and the set, by recording.
Held = dict[str, list[tuple[int, int, str]]]


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every segment of phase II (else of the transcripts that there are)."""
    data = source / "data" if (source / "data").is_dir() else source
    parts = [data / name for name in ("conversation", "interview") if (data / name).is_dir()]
    if not parts:
        raise UserError(f"{source} holds no conversation and interview: name the folder of LDC2015S04")
    held, train = dev_sets(source), train_list(source)
    speakers = {speaker_of(recording) for recording in held}
    texts, found = Texts(seame.RULES), []
    seen: set[tuple[str, int, int, str]] = set()
    for part in parts:
        phase = part / "transcript" / "phaseII"
        if not (part / "transcript").is_dir() or not (part / "audio").is_dir():
            raise UserError(f"{part} holds no audio and transcript: is it unpacked whole?")
        for table in sorted((phase if phase.is_dir() else part / "transcript").glob("*.txt")):
            for number, line in lines(table):
                utterance = segment(part, table, number, line)
                listed = listed_as(utterance, held)
                if listed:
                    seen.add(listed)
                elif utterance.speaker in speakers:
                    texts.drop(LANGUAGE, "speaker of a dev set")
                    continue
                elif train and utterance.audio.stem.lower() not in train:
                    texts.drop(LANGUAGE, "not in the train list")
                    continue
                text = texts.clean(utterance.text, LANGUAGE)
                if not text:
                    continue
                if listed:
                    extra = {**utterance.extra, "set": listed[3]}
                    utterance = replace(utterance, split="test", extra=extra)
                found.append(replace(utterance, text=text))
    refuse_other_lists(source, held, seen)
    if not found:
        raise UserError(f"{data} has no transcript/phaseII/*.txt with segments: is it unpacked whole?")
    return texts.corpus(found, LICENCE, "SEAME, LDC2015S04, from the LDC")


def segment(part: Path, table: Path, number: int, line: str) -> Utterance:
    """One line, with its text as it stands there."""
    cells = line.rstrip("\r\n").split("\t")
    times = cells[1:3]
    if len(cells) not in (4, 5) or not all(re.fullmatch(r"\d+(\.\d+)?", t) for t in times):
        raise UserError(
            f"{table}, line {number}: not a recording, start, end (ms), language and text between tabs"
        )
    start, end = (float(t) / 1000 for t in times)
    if not start < end:
        raise UserError(f"{table}, line {number}: no segment goes from {start:g} s to {end:g} s")
    recording = cells[0].strip()
    files = [part / "audio" / f"{recording}{end_}" for end_ in (".flac", ".sph", ".wav")]
    mark = {"mark": cells[3].strip()} if len(cells) == 5 else {}
    return Utterance(
        key=key(f"{recording}-{round(start * 1000):08d}"),
        audio=next((file for file in files if file.is_file()), files[0]),
        text=cells[-1],
        language=LANGUAGE,
        speaker=speaker_of(recording),
        start=start,
        end=end,
        table=table,
        line=number,
        extra={"style": part.name, **mark},
    )


def speaker_of(recording: str) -> str:
    """01NC01FBX_0101 is of NC01F in conversation 01, NI01MAX_0101 of NI01M."""
    name = recording.split("_")[0].lower()
    return name[2:-2] if name[:1].isdigit() else name[:5]


def dev_sets(source: Path) -> Held:
    """The segments of dev_man and dev_sge."""
    held: Held = {}
    for name in SETS:
        for file in sorted(source.glob(f"*/{name}/text")):
            for number, line in lines(file):
                parts = line.split()[0].lower().split("-")
                if len(parts) != 4 or not (parts[2].isdigit() and parts[3].isdigit()):
                    raise UserError(f"{file}, line {number}: not SPEAKER-RECORDING-START-END")
                held.setdefault(parts[1], []).append((int(parts[2]), int(parts[3]), name))
    return held


def train_list(source: Path) -> set[str]:
    """The recordings to train on, in lower case; empty where no list lies beside."""
    files = sorted(source.glob("*/train/wav_file.txt"))
    return {PurePosixPath(line.strip()).stem.lower() for file in files for _, line in lines(file)}


def listed_as(utterance: Utterance, held: Held) -> tuple[str, int, int, str] | None:
    """The recording, start, end and set by which a dev set names the segment."""
    recording = utterance.audio.stem.lower()
    start, end = (round(100 * (t or 0.0)) for t in (utterance.start, utterance.end))
    near = (x for x in held.get(recording, ()) if abs(x[0] - start) < NEAR and abs(x[1] - end) < NEAR)
    return next(((recording, *x) for x in near), None)


def refuse_other_lists(source: Path, held: Held, seen: set[tuple[str, int, int, str]]) -> None:
    """Raises: UserError: more than `MAX_LOST` of a dev set is in no transcript."""
    asked = Counter(name for segments in held.values() for *_, name in segments)
    there = Counter(name for *_, name in seen)
    for name, every in sorted(asked.items()):
        if every - there[name] > MAX_LOST * every:
            raise UserError(
                f"{source}: {every - there[name]} of {every} segments of {name} are in no transcript: "
                "is the list, or the corpus, of another release?"
            )
