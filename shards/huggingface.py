"""Recipe: data sets of Hugging Face `datasets`, as `save_to_disk` leaves them.

Source: the folder of a Dataset (data-00000-of-….arrow, state.json), or of a DatasetDict (its parts tell
the splits: train, validation, test). Needs `pip install 'salsa-dist[datasets]'`.

    Features: {"audio": Audio(…), "sentence": Value("string"), "locale": …, "client_id": …}

as in https://huggingface.co/docs/datasets/audio_load. The audio column is the first of the type Audio;
the others are named as in `salsa_dist/corpus/manifest.py`, or by `--column text=…`. Audio is taken
as the file that it is, from the Arrow tables or beside them; `datasets` decodes nothing.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from salsa_dist.corpus import manifest
from salsa_dist.corpus.streamed import names_of_classes
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
    """Every row of every part."""
    parts = _parts(source)
    found: list[Utterance] = []
    drops = Drops()
    for folder, split in parts:
        dataset, audio = load(folder)
        columns = dataset.remove_columns([audio])
        for i, values in enumerate(columns):
            named = names_of_classes(values, columns.features).items()
            there = {name: "" if value is None else value for name, value in named}
            row = manifest.Row({**there, "audio": f"{folder.name}-{i:08d}"}, folder, i, "row")
            utterance = manifest.to_utterance(row, ask)
            if not utterance.text.strip() and utterance.speech:
                drops.add(utterance.language, "no text", f"{folder}, row {i}")
                continue
            found.append(
                Utterance(
                    key=key(f"{folder.name}-{i:08d}"),
                    audio=folder,
                    text=utterance.text,
                    language=utterance.language,
                    speaker=utterance.speaker,
                    split=split or utterance.split,
                    row=i,
                    extra=utterance.extra,
                    speech=utterance.speech,
                    loss_weight=utterance.loss_weight,
                )
            )
    said = f"Hugging Face data set {source.name}"
    return Corpus(found, "not stated", said, dropped=drops.counts, first=drops.first)


def audio_of(utterance: Utterance) -> Path | bytes:
    """The audio file of a row: its bytes, or the path that the row names."""
    dataset, audio = load(utterance.audio)
    cell = dataset[utterance.row][audio]
    if cell and cell.get("bytes"):
        raw: bytes = cell["bytes"]
        return raw
    if cell and cell.get("path"):
        return Path(cell["path"])
    raise UserError(f"{utterance.audio}, row {utterance.row} has no audio")


@lru_cache(maxsize=8)
def load(folder: Path) -> tuple[Any, str]:
    """A Dataset that leaves its audio undecoded, and the name of its audio column."""
    datasets = _library()
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{folder} can't be read as a data set ({reason})") from e
    audio = next((n for n, f in dataset.features.items() if isinstance(f, datasets.Audio)), None)
    if audio is None:
        raise UserError(f"{folder} has no column of the type Audio: cast it with cast_column")
    return dataset.cast_column(audio, datasets.Audio(decode=False)), audio


def _parts(source: Path) -> list[tuple[Path, str | None]]:
    if (source / "dataset_dict.json").is_file():
        folders = sorted(path.parent for path in source.glob("*/state.json"))
        refuse_other_splits(
            {("", folder.name): folder for folder in folders},
            "build a DatasetDict without it, or rename it",
        )
        return [(folder, split_in(folder.name)) for folder in folders]
    if (source / "state.json").is_file():
        return [(source, None)]
    raise UserError(
        f"{source} holds no state.json and no dataset_dict.json: name what save_to_disk wrote"
    )


def _library() -> Any:
    try:
        import datasets
    except ImportError as e:
        raise UserError(
            "recipe huggingface needs the package datasets: pip install 'salsa-dist[datasets]'"
        ) from e
    datasets.disable_progress_bars()
    return datasets
