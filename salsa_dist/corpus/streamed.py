"""Streams a data set of a hub, or a folder in the same layout, once into files that a build reads.

    DataSet.open(name, ask) ──► name, commit, licence, splits
      fetch(split, folder)  ──► folder/rows.jsonl        what the data set says of each row
                                folder/000/000042        the row's audio, as the bytes that it is
                                folder/state.json        how far it came: a stopped fetch goes on there

Only the splits that were asked for are fetched. `datasets` decodes no audio, and runs no code of the
data set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from salsa_dist.corpus.manifest import NAMES
from salsa_dist.corpus.utterance import Ask
from salsa_dist.data.shards import MAX_BYTES
from salsa_dist.errors import UserError
from salsa_dist.versions import raised_by_us
from salsa_dist.whole_file import replace_file

SCHEMA = "salsa-dist/fetched-split/1"
SAVE_EVERY = 200  # rows; a fetch that was killed repeats at most so many


@dataclass(frozen=True)
class DataSet:
    """A data set at one commit.

    Attributes:
        name: ORG/NAME on the hub, or a folder.
        commit: of the hub; of a folder, a hash of its files' names, sizes and times.
        licence: as its card says; None where it says none, or was not looked at.
        splits: those asked for; all where none were.
    """

    name: str
    commit: str
    licence: str | None
    splits: tuple[str, ...]
    builder: Any
    audio: str | None

    @classmethod
    def open(cls, name: str, ask: Ask, data_dir: str | None = None) -> DataSet:
        """Raises: UserError: the hub can't be reached, or has no such data set, revision, subset or
        split for this user."""
        datasets = library()
        folder = Path(name).is_dir()
        if folder and ask.revision:
            raise UserError(f"{name} is a folder, which has no --revision: remove it")
        commit, licence = (_hash(Path(name)), None) if folder else _on_hub(name, ask.revision)
        with told(name):
            builder = datasets.load_dataset_builder(
                name, ask.subset, data_dir=data_dir, revision=None if folder else commit
            )
            # The generators name the splits of data sets whose card does not.
            known = tuple(map(str, builder.as_streaming_dataset()))
        if missing := [split for split in ask.splits if split not in known]:
            raise UserError(f"{name} has no split {', '.join(missing)}: there are {', '.join(known)}")
        audio = ask.columns.get("audio")
        return cls(name, commit, licence, ask.splits or known, builder, audio)

    def fetch(self, split: str, folder: Path) -> Path:
        """`folder/rows.jsonl`: a row's columns, and under `audio` its file's name (null: it has none).

        Raises:
            UserError: no column holds audio, or a row can't be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows, state = folder / "rows.jsonl", _state(folder)
        if state["finished"]:
            return rows
        stream, audio = self._undecoded(split)
        if state["stream"] is not None:
            stream.load_state_dict(state["stream"])
        with open(rows, "ab") as out:
            out.truncate(state["bytes"])
            out.seek(0, os.SEEK_END)
            done = int(state["rows"])
            source = iter(stream)
            while True:
                with told(f"{self.name}, {split}, row {done}"):
                    row = next(source, None)
                    if row is None:
                        break
                    sound = _bytes(row.pop(audio))
                    row = names_of_classes(row, stream.features or {})
                out.write(_line(row, _keep(sound, folder, done)))
                done += 1
                if done % SAVE_EVERY == 0:
                    _save(folder, out, done, stream.state_dict(), False)
            _save(folder, out, done, None, True)
        return rows

    def _undecoded(self, split: str) -> tuple[Any, str]:
        """The stream with encoded audio, and the name of its audio column."""
        datasets = library()
        with told(f"{self.name}, {split}"):
            stream = self.builder.as_streaming_dataset(split=split)
        columns = stream.features or {}
        audio = self.audio or next(
            (n for n, f in columns.items() if isinstance(f, datasets.Audio)),
            next((n for n in NAMES["audio"] if n in columns), None),
        )
        if audio is None or audio not in columns:
            there = ", ".join(columns) or "none that are known"
            raise UserError(
                f"{self.name}: no column of audio among {there}: name it with --column audio=…"
            )
        if not isinstance(columns[audio], datasets.Audio):
            return stream, audio
        if isinstance(self.builder, datasets.ArrowBasedBuilder):
            return stream.cast_column(audio, datasets.Audio(decode=False)), audio
        # Builders that yield examples would encode them, for which `datasets` wants torchcodec.
        text = datasets.Value("string")
        pair = {"bytes": datasets.Value("binary"), "path": text}
        return stream.cast_column(audio, text if self.builder.name == "audiofolder" else pair), audio


@contextmanager
def told(what: str) -> Iterator[None]:
    """Errors from inside the libraries, in one line that starts with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # they raise a dozen kinds, of the network, of Arrow and of their own
        if raised_by_us(e) and not isinstance(e, OSError | ValueError):  # a bug of ours
            raise
        raise UserError(f"{what}: {_reason(e)}") from e


def names_of_classes(row: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the name of each class in place of its number, which nothing outside knows."""
    named = dict(row)
    for column, feature in features.items():
        if hasattr(feature, "int2str") and isinstance(number := row.get(column), int):
            named[column] = feature.int2str(number) if number >= 0 else None
    return named


def library() -> Any:
    """The package `datasets`. Raises: UserError: it is not installed."""
    try:
        import datasets
    except ImportError as e:
        raise UserError(
            "recipe hub needs the package datasets: pip install 'salsa-dist[datasets]'"
        ) from e
    datasets.disable_progress_bars()
    return datasets


def _on_hub(name: str, revision: str | None) -> tuple[str, str | None]:
    """The commit that a revision is now, and the licence on the card."""
    library()
    from huggingface_hub import HfApi

    with told(name):
        info = HfApi().dataset_info(name, revision=revision or "main", timeout=30)
    licence = getattr(info.card_data, "license", None)
    return str(info.sha), ", ".join(licence) if isinstance(licence, list) else licence


def _reason(error: BaseException) -> str:
    from huggingface_hub import errors

    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    text = " ".join(str(error).split())[:200] or type(error).__name__
    kinds = {type(e).__name__ for e in chain}
    if any(isinstance(e, errors.GatedRepoError) for e in chain) or "gated dataset" in text:
        return "its publisher asks for consent: give it on its page, then set HF_TOKEN or log in"
    if any(isinstance(e, errors.RevisionNotFoundError) for e in chain):
        return "the hub has no such --revision of it: look at its page"
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in chain):
        return "no folder here and no data set on the hub, or one for which HF_TOKEN must be set"
    if "OfflineModeIsEnabled" in kinds or kinds & {"ConnectError", "ConnectTimeout", "ConnectionError"}:
        return "no folder here, and the hub can't be reached: look at the network and HF_HUB_OFFLINE"
    if "scripts are no longer supported" in text:
        return "it comes with a loading script, which is never run: name a revision with data files"
    return f"can't be read ({text})"


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        about = (path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns)
        digest.update(repr(about).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:40]


def _bytes(cell: Any) -> bytes | None:
    """The audio in a cell; None: there is none. A path must not name a file of this machine."""
    if isinstance(cell, str):  # of audiofolder, which keeps it below its own folder
        import fsspec

        with fsspec.open(cell, "rb") as file:
            raw: bytes = file.read(MAX_BYTES + 1)
    else:
        raw = cell if isinstance(cell, bytes) else (cell or {}).get("bytes") or b""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"its audio has more than {MAX_BYTES} bytes")
    return raw or None


def _keep(raw: bytes | None, folder: Path, number: int) -> str | None:
    if raw is None:
        return None
    path = folder / f"{number // 1000:03d}" / f"{number:06d}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return path.relative_to(folder).as_posix()


def _line(row: dict[str, Any], audio: str | None) -> bytes:
    plain = {k: v for k, v in row.items() if v is None or isinstance(v, str | int | float)}
    return (json.dumps({"row": plain, "audio": audio}) + "\n").encode("ascii")


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["schema"] == SCHEMA:
            return dict(state)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"rows": 0, "bytes": 0, "stream": None, "finished": False}


def _save(folder: Path, out: BinaryIO, rows: int, stream: Any, finished: bool) -> None:
    out.flush()
    state = {
        "schema": SCHEMA,
        "rows": rows,
        "bytes": out.tell(),
        "stream": stream,
        "finished": finished,
    }
    replace_file(folder / "state.json", json.dumps(state))
