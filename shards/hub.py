"""Recipe: any data set of a hub, streamed by its name, or a folder that is laid out like one.

    salsa-dist shards build hub ORG/NAME OUT --revision COMMIT --subset bg --split train,test

Needs `pip install 'salsa-dist[datasets]'`; a private or gated data set wants HF_TOKEN. Formats are
those that https://huggingface.co/docs/datasets/stream streams (Parquet, WebDataset, audio files beside
a metadata.jsonl, …). A loading script is never run, and no path in a table is opened.

Columns are found as in `salsa_dist/corpus/manifest.py`, the audio by its type, or named: `--column
text=transcription`. The splits asked for are fetched once into a hidden folder beside OUT, other splits
and subsets are not; then shards are made. Stopped, the same command goes on. The card names the commit.
Known by name: `salsa_dist/corpus/published.py`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from salsa_dist.corpus import manifest
from salsa_dist.corpus.published import Published, known
from salsa_dist.corpus.streamed import DataSet
from salsa_dist.corpus.texts import Texts
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key, refuse_other_splits, split_in
from salsa_dist.errors import UserError

# The source is a name, which need not be there as a file.
REMOTE = True


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every row of the splits asked for."""
    name = str(source)
    about = known(name)
    if about.say and not ask.subset:
        raise UserError(f"{name} is a collection: say which part with {about.say}")
    if about.lacks and "text" not in ask.columns:
        raise UserError(f"{name} {about.lacks}")
    language = ask.language or (ask.subset if about.subsets == "language" else about.language)
    ask = replace(ask, columns={**about.columns, **ask.columns}, language=language)
    folder = ask.subset if about.subsets == "folder" else None
    found = DataSet.open(name, replace(ask, subset=None) if folder else ask, data_dir=folder)
    refuse_other_splits(
        {("", split): name for split in found.splits}, "name those to take with --split"
    )
    place = hashlib.sha256(f"{name}\0{found.commit}\0{ask.subset}\0{found.audio}".encode()).hexdigest()
    texts, utterances = Texts(about.rules), []
    for split in found.splits:
        rows = found.fetch(split, scratch / place[:16] / key(split))
        for number, (_, line) in enumerate(manifest.lines(rows)):
            fetched = json.loads(line)
            utterance = _utterance(fetched, rows, split, number, ask, about, texts)
            if utterance:
                utterances.append(utterance)
    if not utterances:
        raise UserError(f"{name}: no row of {', '.join(found.splits)} has audio and a text")
    licence = about.licence or found.licence or "not stated"
    said = f"{about.source or 'data set'} {name}, {ask.subset or 'all'}, commit {found.commit}"
    return texts.corpus(utterances, licence, said)


def _utterance(
    fetched: dict[str, object],
    rows: Path,
    split: str,
    number: int,
    ask: Ask,
    about: Published,
    texts: Texts,
) -> Utterance | None:
    """One row; None, and counted, where it has no audio or nothing is said."""
    values, audio = fetched["row"], fetched["audio"]
    assert isinstance(values, dict)
    values = {name: "" if value is None else value for name, value in values.items()}
    kept = {new: values.pop(old) for old, new in about.extra.items() if old in values}
    column = ask.columns.get("audio", "audio")
    row = manifest.Row(
        {**values, **kept, column: audio or "none"}, Path(f"{split} of the data set"), number, "row"
    )
    utterance = manifest.to_utterance(row, ask)
    language = about.languages.get(utterance.language, utterance.language)
    if audio is None:
        texts.drop(language, "no audio", f"{split}, row {number}")
        return None
    if not utterance.text.strip() and utterance.speech:
        why = "no transcript" if about.untranscribed else "no text"
        texts.drop(language, why, f"{split}, row {number}")
        return None
    text = texts.clean(utterance.text, language) or ""
    if not text and utterance.speech:
        return None
    return Utterance(
        key=key(f"{split}-{number:08d}"),
        audio=rows.parent / str(audio),
        text=text,
        language=language,
        speaker=utterance.speaker,
        split=split_in(split) or utterance.split,
        extra=utterance.extra,
        speech=utterance.speech,
        loss_weight=utterance.loss_weight,
    )
