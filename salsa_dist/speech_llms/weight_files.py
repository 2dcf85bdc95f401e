"""The tensors of a checkpoint, read from its safetensors files a run of elements at a time.

model-00001-of-00002.safetensors
├── 8 bytes    length of the header
├── header     JSON: of each tensor its dtype, shape and place
└── data       row-major, so any run of elements is one run of bytes

Files are read, not mapped: what a process has read then is its own memory and nothing else, and
`rchar` of /proc/self/io counts it.

The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import file_in

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 100_000_000  # bytes; what the format allows
_COMPARED = 1 << 22  # elements compared at once


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        path: its file.
        dtype: as stored.
        shape: as stored.
        offset: of its first byte in the file.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def read(self, begin: int, end: int) -> Tensor:
        """Elements `begin` to `end`, (end - begin,), of the stored dtype.

        Raises:
            UserError: the file ends before them, or can't be read.
        """
        elements = torch.empty(end - begin, dtype=self.dtype)
        numbers: Any = elements.view(torch.uint8).numpy()  # a buffer, whatever its stubs say
        view = memoryview(numbers)
        place = self.offset + begin * self.dtype.itemsize
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(place)
                while view:
                    count = file.readinto(view)
                    if not count:
                        raise UserError(f"weight file {self.path} is cut short: copy it again")
                    view = view[count:]
        except OSError as e:
            raise UserError(f"weight file {self.path} can't be read: {e.strerror}") from e
        return elements

    def equals(self, other: StoredTensor) -> bool:
        """Whether both hold the same numbers."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        count = torch.Size(self.shape).numel()
        return all(
            torch.equal(
                self.read(i, min(i + _COMPARED, count)), other.read(i, min(i + _COMPARED, count))
            )
            for i in range(0, count, _COMPARED)
        )


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of `files` by its name there; only headers are read.

    Raises:
        UserError: a file is not of the format, or its tensors are of a dtype that is no plain number.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        header, data = _header(path)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise UserError(
                    f"weight file {path}: {name} is of dtype {entry['dtype']}; take a checkpoint that "
                    "is not quantised"
                )
            begin, _ = entry["data_offsets"]
            found[name] = StoredTensor(
                path, _DTYPES[entry["dtype"]], tuple(entry["shape"]), data + begin
            )
    return found


def safetensors_files(name: str, revision: str | None) -> list[Path] | None:
    """The weight files of a folder or hub name, fetched if need be; None: it has other kinds only."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    def file(wanted: str) -> Path | None:
        return file_in(name, wanted, revision)

    if (single := file(SAFE_WEIGHTS_NAME)) is not None:
        return [single]
    index = file(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return None
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [file(shard) for shard in shards]
    if absent := [shard for shard, path in zip(shards, files, strict=True) if path is None]:
        raise UserError(f"base {name}: weight files are missing: {', '.join(absent)}")
    return [path for path in files if path is not None]


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A file's header, and where its data begin."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size):
                raise ValueError("its header is longer than the file")
            return json.loads(file.read(length)), 8 + length
    except (OSError, ValueError) as e:
        raise UserError(f"weight file {path} can't be read as safetensors: {e}") from e
