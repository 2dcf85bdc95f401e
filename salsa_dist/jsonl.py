"""Files with one JSON object per line; after a kill, the last line may be incomplete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from salsa_dist.errors import UserError
from salsa_dist.full_disk import names
from salsa_dist.json_file import Damaged, of_another_release


def append(path: Path) -> IO[str]:
    """Open `path` to add lines; half a line that a killed process left is cut off first."""
    if path.is_file():
        raw = path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(raw.rfind(b"\n") + 1)
    return open(path, "a", encoding="utf-8")


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """As `append`, for the block; errors of a full disk name `path`."""
    with names(path), append(path) as file:
        yield file


def lines(
    path: Path, schema: str, advice: str, *, whole: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of `path`, each with its place for errors, such as "FILE, line 3".

    Args:
        schema: of every line.
        advice: what to do about a damaged file.
        whole: half a line at the end is damage; otherwise it is left out.

    Raises:
        Damaged: a line is no JSON object, or of another schema.
        UserError: it can't be read.
        FileNotFoundError: there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as e:
        raise UserError(f"{path} can't be read ({e.strerror}): {advice}") from e
    except UnicodeDecodeError as e:
        raise Damaged(f"{path} is damaged ({e}): {advice}") from e
    # By "\n" alone: a text may hold other characters that str.splitlines() takes for line ends.
    *complete, rest = text.split("\n")
    for number, line in enumerate([*complete, rest] if whole else complete, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as e:
            raise Damaged(f"{where} is damaged (no JSON: {e}): {advice}") from e
        if not isinstance(value, dict) or "schema" not in value:
            raise Damaged(f"{where} is damaged (no JSON object with a schema): {advice}")
        if value["schema"] != schema:
            raise Damaged(f"{where} is {of_another_release(value['schema'], schema)}")
        yield where, value


def read(path: Path, schema: str, advice: str) -> Iterator[dict[str, Any]]:
    """The objects of `path`, complete lines only; as `lines`."""
    return (value for _, value in lines(path, schema, advice))
