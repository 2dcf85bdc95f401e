"""The files of a Whisper in CTranslate2's format.

`model.bin`, little-endian, binary version 6 (as written by CTranslate2's `model_spec.py`):

    u32 version │ str spec name │ u32 spec revision
    u32 count   │ count × (str name │ u8 rank │ rank × u32 size │ u8 type │ u32 bytes │ the bytes)
    u32 count   │ count × (str alias │ str name)           str: u16 length, text, a zero byte
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from salsa_dist.errors import UserError

_VERSION, _SPEC, _REVISION = 6, "WhisperSpec", 3
_TYPES = {
    0: torch.float32,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.float16,
    5: torch.bfloat16,
}
_MAX_RANK = 4

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """Where the parts of the model are, over all source folders."""

    weights: list[Path]
    config: Path
    tokenizer: Path
    vocabulary: Path


def find(sources: Sequence[Path]) -> Source:
    """The parts of a model, wherever they lie. Raises: UserError: one is missing."""
    for folder in sources:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: name the folders with the CTranslate2 files")
    shown = ", ".join(str(folder) for folder in sources)

    def one(*names: str) -> Path:
        for name in names:
            for folder in sources:
                if (folder / name).is_file():
                    return folder / name
        raise UserError(f"no {' or '.join(names)} in {shown}: name every folder that holds a part")

    numbered: dict[int, Path] = {}
    for folder in sources:
        for path in folder.glob("model.bin.part*"):
            if match := re.fullmatch(r"model\.bin\.part(\d+)", path.name):
                numbered[int(match[1])] = path
    weights = [numbered[i] for i in sorted(numbered)]
    if any((folder / "model.bin").is_file() for folder in sources) or not weights:
        weights = [one("model.bin", "model.bin.part1")]
    elif sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise UserError(
            f"of the parts of model.bin only {', '.join(map(str, sorted(numbered)))} are in "
            f"{shown}: name every folder that holds a part"
        )
    return Source(
        weights, one("config.json"), one("tokenizer.json"), one("vocabulary.txt", "vocabulary.json")
    )


def read_json(path: Path) -> Any:
    """Raises: UserError: the file is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} can't be read as JSON ({e}): get the file again") from e


def read_variables(blob: bytes, where: str) -> Tensors:
    """CTranslate2's variables by name; every count and size is held against what the file holds."""
    reader = _Reader(blob, where)
    if (version := reader.number("I", "version")) != _VERSION:
        raise UserError(
            f"{where} is not a CTranslate2 file of binary version {_VERSION} (its first number is "
            f"{version}): convert the model again with a current CTranslate2"
        )
    spec, revision = reader.text("spec name"), reader.number("I", "revision")
    if (spec, revision) != (_SPEC, _REVISION):
        raise UserError(
            f"{where} holds {spec!r} revision {revision}, and only {_SPEC} revision {_REVISION} "
            "can be converted"
        )
    variables = dict(reader.variables())
    for _ in range(reader.number("I", "number of aliases")):
        alias, name = reader.text("alias"), reader.text("name of an alias")
        if name not in variables:
            raise reader.error(f"alias {alias!r} stands for {name!r}, which is not there")
        variables[alias] = variables[name]
    if reader.at != len(blob):
        raise reader.error(f"{len(blob) - reader.at} bytes are left over at the end")
    return variables


class _Reader:
    """A place in the file; reads nothing that lies behind its end."""

    def __init__(self, blob: bytes, where: str) -> None:
        self.blob, self.where, self.at = blob, where, 0

    def error(self, what: str) -> UserError:
        return UserError(f"{self.where} is damaged: {what}; get the file again")

    def take(self, size: int, what: str) -> int:
        """The start of the next `size` bytes, which are then behind us."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.blob):
            raise self.error(f"{what} at byte {start} needs {size} bytes, and the file ends before")
        return start

    def number(self, code: str, what: str) -> int:
        form = "<" + code
        return int(struct.unpack_from(form, self.blob, self.take(struct.calcsize(form), what))[0])

    def text(self, what: str) -> str:
        size = self.number("H", what)
        start = self.take(size, what)
        raw = self.blob[start : self.at]
        try:
            return raw.removesuffix(b"\0").decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.error(f"{what} at byte {start} is no text") from e

    def variables(self) -> Iterator[tuple[str, torch.Tensor]]:
        for _ in range(self.number("I", "number of variables")):
            name = self.text("name of a variable")
            rank = self.number("B", f"rank of {name!r}")
            if rank > _MAX_RANK:
                raise self.error(f"{name!r} has {rank} dimensions")
            shape = [self.number("I", f"shape of {name!r}") for _ in range(rank)]
            dtype = _TYPES.get(kind := self.number("B", f"type of {name!r}"))
            if dtype is None:
                raise self.error(f"{name!r} has the unknown type {kind}")
            size = self.number("I", f"size of {name!r}")
            count = math.prod(shape)
            if count * dtype.itemsize != size or not count:
                raise self.error(f"{name!r} of shape {shape} and {dtype} can't have {size} bytes")
            start = self.take(size, f"content of {name!r}")
            # A copy: the file has its tensors at odd addresses.
            raw = bytearray(self.blob[start : self.at])
            yield name, torch.frombuffer(raw, dtype=dtype).reshape(shape)
