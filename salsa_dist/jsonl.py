"""Files with one JSON object per line; after a kill, the last line may be incomplete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from salsa_dist.errors import UserError
from salsa_dist.json_file import of_another_release


def append(path: Path) -> IO[str]:
    """Open `path` to add lines; half a line that a killed process left is cut off first."""
    if path.is_file():
        raw = path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(raw.rfind(b"\n") + 1)
    return open(path, "a", encoding="utf-8")


def read(path: Path, schema: str) -> Iterator[dict[str, Any]]:
    """The objects of `path`, whole lines only, each of `schema`."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return
        try:
            value = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number}: not a JSON object") from e
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        if value.get("schema") != schema:
            found = of_another_release(value.get("schema"), schema)
            raise UserError(f"{path}, line {number}, is {found}")
        yield value
