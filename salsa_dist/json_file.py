"""Our JSON files: each names its schema, is written atomically, and errors name the file.

{"schema": "salsa-dist/halving/1", …}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from salsa_dist.errors import UserError
from salsa_dist.whole_file import replace_file


class Damaged(UserError):
    """The content of a file cannot be used: it is not a JSON object, or is of another release."""


class Record(BaseModel):
    """Base class of what is read from a file or a line. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


_R = TypeVar("_R", bound=BaseModel)


def parsed(model: type[_R], tree: object, where: str, advice: str) -> _R:
    """`tree` as `model`; `UserError` with `where` and the first field that is wrong."""
    try:
        return model.model_validate(tree)
    except ValidationError as e:
        raise Damaged(f"{where} is damaged ({first_problem(e)}): {advice}") from e


def first_problem(error: ValidationError) -> str:
    """The first wrong field and the error in it, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())


def write(path: Path, schema: object, fields: Mapping[str, Any], *, flushed: bool = True) -> None:
    """Write `fields` and their schema to `path`, whole or not at all."""
    text = json.dumps({"schema": schema, **fields}, indent=1, ensure_ascii=False)
    replace_file(path, text + "\n", flushed=flushed)


def read(path: Path, schemas: tuple[str, ...], advice: str) -> dict[str, Any]:
    """The content of `path`, with its schema.

    Args:
        schemas: those that can be read, the newest first.
        advice: what to do about a damaged file.

    Raises:
        Damaged: it is no JSON object, or of another release.
        UserError: it can't be read.
        FileNotFoundError: there is none.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except NotADirectoryError as e:  # one of the folders above is a file
        raise FileNotFoundError(*e.args) from e
    except OSError as e:
        raise UserError(f"{path} can't be read ({e.strerror}): {advice}") from e
    except ValueError as e:
        raise Damaged(f"{path} is damaged ({e}): {advice}") from e
    if not isinstance(tree, dict) or "schema" not in tree:
        raise Damaged(f"{path} is damaged (no JSON object with a schema): {advice}")
    if tree["schema"] not in schemas:
        raise Damaged(f"{path} is {of_another_release(tree['schema'], *schemas)}")
    return tree


def peek(path: Path, schema: object) -> dict[str, Any]:
    """The content of `path`, without its schema; empty if it is missing, damaged or of another schema.

    For files that are read while others write them, or after a failure.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) and tree.pop("schema", None) == schema else {}


def of_another_release(found: object, *known: str) -> str:
    """The end of 'FILE is …' for a file with a schema that is not in `known`, newest first."""
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
