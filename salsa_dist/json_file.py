"""JSON files of ours: each says of which schema it is, is written whole, and is refused by name.

{"schema": "salsa-dist/halving/1", …}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.whole_file import replace_file


def write(path: Path, schema: object, fields: Mapping[str, Any], *, flushed: bool = True) -> None:
    """Write `fields` and their schema to `path`, whole or not at all."""
    text = json.dumps({"schema": schema, **fields}, indent=1, ensure_ascii=False)
    replace_file(path, text + "\n", flushed=flushed)


def read(path: Path, schemas: tuple[str, ...], advice: str) -> dict[str, Any]:
    """What `path` holds, with its schema.

    Args:
        schemas: those that can be read, the newest first.
        advice: what to do about a damaged file.

    Raises:
        UserError: the file can't be read, is no JSON object, or is of another release.
        FileNotFoundError: there is none.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is damaged ({e}): {advice}") from e
    if not isinstance(tree, dict) or "schema" not in tree:
        raise UserError(f"{path} is damaged (no JSON object with a schema): {advice}")
    if tree["schema"] not in schemas:
        raise UserError(f"{path} is {of_another_release(tree['schema'], *schemas)}")
    return tree


def peek(path: Path, schema: object) -> dict[str, Any]:
    """What `path` holds, without its schema; nothing where it is gone, damaged or of another schema.

    For files that are read while others write them, or after a failure.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) and tree.pop("schema", None) == schema else {}


def of_another_release(found: object, *known: str) -> str:
    """The end of 'FILE is …' for a file of a schema that is not among `known`, the newest first."""
    if found is None:
        return f"of no schema; this version reads {known[0]}"
    kind, _, number = known[0].rpartition("/")
    other, _, its = str(found).rpartition("/")
    by = ""
    if other == kind and its.isdigit() and int(its) != int(number):
        newer = int(its) > int(number)
        by = f", written by {'a newer' if newer else 'an older'} release of salsa-dist"
    shown = repr(found) if len(repr(found)) <= 60 else f"{repr(found)[:57]}…"
    return f"of schema {shown}{by}; this version reads {known[0]}"
