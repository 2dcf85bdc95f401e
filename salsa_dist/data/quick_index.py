"""`index.columns`: the content of `index.json` in a format that loads fast; optional.

    index.columns      a safetensors file
    ├── metadata       {"schema", "of": sha256 of the index.json that it was made from}
    ├── head           the tree of index.json without the shards' entries, as JSON
    ├── seconds, offsets, lengths, keys        all entries, see `entries.py`
    └── crc32                                  of each sample's bytes; only here, and optional

Only that of the index.json beside it is read. A folder without one loads the slower way, as does one
whose index.json was changed; so both forms never disagree, and nobody has to care for the second.
A sample without a CRC-32 is read unchecked.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from salsa_dist.data.entries import Columns
from salsa_dist.data.file_hash import sha256_of
from salsa_dist.whole_file import written_whole

SCHEMA = "salsa-dist/index-columns/1"
FILE = "index.columns"
_KINDS = {"seconds": np.float64, "offsets": np.int64, "lengths": np.int64, "keys": np.uint8}
_CRC32 = "crc32"


def write(folder: Path, of: str, head: dict[str, Any], columns: Columns) -> None:
    """Write `folder/index.columns` for the index in `folder/of`."""
    tensors: dict[str, np.ndarray[Any, Any]] = {name: getattr(columns, name) for name in _KINDS}
    if columns.crc32 is not None:
        tensors[_CRC32] = columns.crc32
    tensors["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    facts = json.dumps({"schema": SCHEMA, "of": sha256_of(folder / of)})
    # What a crash tears is made again from the index.
    with written_whole(folder / FILE, flushed=False, writer=str(os.getpid())) as part:
        # One key: safetensors writes several in any order, and a build gives the same bytes always.
        save_file(tensors, part, metadata={"salsa_dist": facts})


def read(folder: Path, of: str) -> tuple[Any, Columns] | None:
    """The index in `folder/of` but its entries, and those; None where no columns are of it.

    Raises:
        OSError: `folder/of` can't be read.
    """
    if not (folder / FILE).is_file():
        return None
    sha256 = sha256_of(folder / of)
    try:
        with safe_open(folder / FILE, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("salsa_dist", "{}"))
            if facts != {"schema": SCHEMA, "of": sha256}:
                return None
            tree = json.loads(file.get_tensor("head").tobytes())
            there = _CRC32 in file.keys()  # noqa: SIM118 - it is no dict
            names = [*_KINDS, _CRC32] if there else _KINDS
            columns = Columns(**{name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError, ValueError, RecursionError):
        return None
    return (tree, columns) if _fit(columns) else None


def _fit(columns: Columns) -> bool:
    count = len(columns.seconds) if columns.seconds.ndim else -1
    shapes = {columns.seconds.shape, columns.offsets.shape, columns.lengths.shape}
    kinds = all(getattr(columns, name).dtype == kind for name, kind in _KINDS.items())
    if columns.crc32 is not None:
        shapes.add(columns.crc32.shape)
        kinds &= columns.crc32.dtype == np.uint32
    return (
        kinds
        and shapes == {(count,)}
        and columns.keys.ndim == 1
        and len(columns.key_ends) == count
        and (not count or int(columns.key_ends[-1]) == len(columns.keys) - 1)
    )
