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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.huggingface_hub import file_in
from salsa_dist.speech_llms.sources import Source

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


@dataclass(frozen=True)
class StoredTensor(Source):
    """One tensor of a file.

    Attributes:
        path: its file.
        offset: of its first byte in the file.
    """

    path: Path
    offset: int

    @property
    def paths(self) -> frozenset[Path]:
        return frozenset((self.path,))

    def read(self, begin: int, end: int) -> Tensor:
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


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of `files` by its name there; only headers are read.

    Raises:
        UserError: a file is not of the format, or its tensors are of a dtype that is no plain number.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        header, data = read_header(path)
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise UserError(
                    f"weight file {path}: {name} is of dtype {entry['dtype']}; take a checkpoint that "
                    "is not quantised"
                )
            begin, _ = entry["data_offsets"]
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            found[name] = StoredTensor(dtype, shape, path, data + begin)
    return found


def safetensors_files(name: str, revision: str | None) -> list[Path] | None:
    """The weight files of a folder or hub name, fetched if need be; None: it has other kinds only."""
    files = _listed(lambda wanted: file_in(name, wanted, revision))
    if files is None:
        return None
    if absent := [wanted for wanted, path in files.items() if path is None]:
        raise UserError(f"base {name}: weight files are missing: {', '.join(absent)}")
    return [path for path in files.values() if path is not None]


def cached_safetensors_files(name: str, revision: str | None) -> list[Path] | None:
    """The weight files of a hub name that this machine has; None: not all of them."""
    from huggingface_hub import try_to_load_from_cache

    def cached(wanted: str) -> Path | None:
        found = try_to_load_from_cache(name, wanted, revision=revision)
        return Path(found) if isinstance(found, str) else None

    if (files := _listed(cached)) is None:
        return None
    found = [path for path in files.values() if path is not None]
    return found if len(found) == len(files) else None


def _listed(file: Callable[[str], Path | None]) -> dict[str, Path | None] | None:
    """By name, the one weight file of a checkpoint, or those of its index; None: it has neither."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    if (single := file(SAFE_WEIGHTS_NAME)) is not None:
        return {SAFE_WEIGHTS_NAME: single}
    if (index := file(SAFE_WEIGHTS_INDEX_NAME)) is None:
        return None
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return {name: file(name) for name in sorted(names)}


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """By name, the `dtype`, `shape` and `data_offsets` of a file's tensors; and where its data begin.

    Raises:
        UserError: the file is cut off, or no safetensors file.
    """
    try:
        with open(path, "rb") as file:
            whole = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, whole):
                raise ValueError
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError
        header.pop("__metadata__", None)
        if any(entry["data_offsets"][1] > whole - 8 - length for entry in header.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(
            f"base {path.parent} can't be loaded: {path.name} is no whole safetensors file, fetch "
            "it again"
        ) from e
    return header, 8 + length


def refuse_other_weights(name: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not those that its config.json describes.

    Parts that the class of `model` does not have, such as another tower, may be there.

    Args:
        info: what `from_pretrained(…, output_loading_info=True, ignore_mismatched_sizes=True)` reports.

    Raises:
        UserError: a weight is missing, has another shape, or is of a layer that the model lacks.
    """
    if lacking := sorted(info["missing_keys"]):
        # transformers would fill these with random numbers, other ones on every rank.
        raise UserError(
            f"base {name}: its checkpoint lacks {len(lacking)} weights, such as {lacking[0]}: take a "
            "complete checkpoint"
        )
    if other := sorted(info["mismatched_keys"]):
        weight, stored, wanted = other[0]
        raise UserError(
            f"base {name}: its checkpoint has {weight} as {tuple(stored)}, config.json wants "
            f"{tuple(wanted)}: take all files from one revision"
        )
    lists = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    if beyond := sorted(key for key in info["unexpected_keys"] if key.startswith(lists)):
        raise UserError(
            f"base {name}: its checkpoint has {len(beyond)} weights in layers that config.json does "
            f"not describe, such as {beyond[0]}: take all files from one revision"
        )
