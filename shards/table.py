"""Recipe: tables, CSV or TSV, with a line of column names.

Source: FILE.csv or FILE.tsv (or either with .gz), or a folder of them (train.tsv, dev.tsv, …).

    path,sentence,language,speaker                  names: as in `salsa_dist/corpus/manifest.py`, or
    clips/a.wav,"Hello, you",en,s1                  --column text=my_column

CSV is quoted as in RFC 4180. In TSV a quotation mark is an ordinary character, but for a cell in quotes
whose quotes inside are all doubled, as pandas writes it. Audio paths are relative to the table. What
other columns say in a word or a number goes along.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from salsa_dist.corpus import manifest
from salsa_dist.corpus.utterance import Ask, Corpus
from salsa_dist.errors import UserError

# In quotes, with quotes inside that are all doubled: nobody writes that who means what stands there.
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every row of every table."""
    found = (row for file in manifest.files(source, SUFFIXES) for row in rows(file))
    return manifest.corpus(found, ask, f"table {source.name}")


def rows(path: Path) -> Iterator[manifest.Row]:
    """The rows of one table. Raises: UserError: a row with more or fewer cells than columns."""
    quoted = ".tsv" not in path.name.lower()
    table = manifest.cells(path, quoted=quoted)
    _, names = next(table, (0, []))
    if len(set(names)) < len(names) or not all(names):
        raise UserError(f"{path}: its first line must name the columns, each once")
    for number, cells in table:
        if len(cells) != len(names):
            raise UserError(f"{path}, line {number}: {len(cells)} cells for {len(names)} columns")
        if not quoted:
            cells = [_unquoted(cell) for cell in cells]
        yield manifest.Row(dict(zip(names, cells, strict=True)), path, number)


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell
