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

from pathlib import Path

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.utterance import Ask, Corpus, Drops, Utterance, key, split_in
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
    said = f"Kaldi data folder {source.name}"
    return Corpus(found, "not stated", said, dropped=drops.counts, first=drops.first)


def data_folder(folder: Path, split: str | None, ask: Ask, drops: Drops) -> list[Utterance]:
    """The utterances of one data folder; those without a text, and texts without a recording, are
    counted in `drops`."""
    recordings = table(folder / "wav.scp")
    for name, path in recordings.items():
        if path.endswith("|") or path.startswith("|"):
            raise UserError(
                f"{folder / 'wav.scp'}: {name} is a command, and no command is run: write the audio "
                "to files first (Kaldi's wav-copy does)"
            )
    texts = table(folder / "text")
    speakers = table(folder / "utt2spk") if (folder / "utt2spk").exists() else {}
    languages = table(folder / "utt2lang") if (folder / "utt2lang").exists() else {}
    of_speaker = table(folder / "spk2gender") if (folder / "spk2gender").exists() else {}
    gender = {name: of_speaker[who] for name, who in speakers.items() if of_speaker.get(who)}
    parts: dict[str, tuple[str, float | None, float | None]]
    if (folder / "segments").exists():
        parts = {name: _segment(folder, name, rest) for name, rest in _segments(folder).items()}
    else:
        parts = {name: (name, None, None) for name in recordings}
    for name in sorted(texts.keys() - parts.keys()):
        spoken = languages.get(name) or ask.language or "any"
        drops.add(spoken, "no recording", f"{folder / 'text'}: {name}")
    found = []
    for name, (recording, start, end) in parts.items():
        language = languages.get(name) or ask.language
        if not language:
            raise UserError(f"{folder}: no language for {name}: give --language, or add utt2lang")
        if recording not in recordings:
            raise UserError(f"{folder / 'segments'}: {name} is of {recording}, not in wav.scp")
        if not texts.get(name):
            drops.add(language, "no text", f"{folder / 'text'}: {name}")
            continue
        audio = Path(recordings[recording])
        beside = folder / audio
        found.append(
            Utterance(
                key=key(name),
                audio=beside if beside.exists() or not audio.exists() else audio,
                text=texts[name],
                language=language,
                speaker=speakers.get(name),
                split=split,
                start=start,
                end=end,
                table=folder / ("wav.scp" if start is None else "segments"),
                extra={"gender": gender[name]} if name in gender else {},
            )
        )
    return found


def table(path: Path) -> dict[str, str]:
    """`name rest of the line`, by name. Raises: UserError: missing, or a name that is there twice."""
    if not path.is_file():
        raise UserError(f"{path} is missing: a Kaldi data folder has it")
    found: dict[str, str] = {}
    for number, line in lines(path):
        name, _, rest = line.strip().partition(" ") if " " in line.strip() else (line.strip(), "", "")
        if "\t" in name:
            name, _, rest = line.strip().partition("\t")
        if name in found:
            raise UserError(f"{path}, line {number}: {name} is there twice")
        found[name] = rest.strip()
    return found


def _segments(folder: Path) -> dict[str, str]:
    return table(folder / "segments")


def _segment(folder: Path, name: str, rest: str) -> tuple[str, float, float | None]:
    cells = rest.split()
    try:
        recording, start, end = cells[0], float(cells[1]), float(cells[2])
        # Kaldi writes -1 for the end of the recording.
        until = None if end == -1 else end
        if start < 0 or (until is not None and not start < until):
            raise ValueError
    except (ValueError, IndexError) as e:
        raise UserError(
            f"{folder / 'segments'}: {name} has {rest!r}, not a recording, its start and its end"
        ) from e
    return recording, start, until
