"""A disk that takes no more, as one line: it is full, over a quota or read-only.

with full_disk_in_one_line():      around a command, or what a rank does
    with names(path):              around what writes `path`
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salsa_dist.errors import UserError

_ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EROFS: "make it writable",
}


@contextmanager
def names(path: Path) -> Iterator[None]:
    """Inside the block, errors of a disk that takes no more have the name of `path`.

    Those of `write` and `flush` have none, and safetensors has errors of its own.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _ADVICE and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None or int(found[1]) not in _ADVICE:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextmanager
def full_disk_in_one_line() -> Iterator[None]:
    """Inside the block, a disk that takes no more is an error of the user's.

    Raises:
        UserError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        if (advice := _ADVICE.get(error.errno or 0)) is None:
            raise
        raise UserError(
            f"{error.filename or 'a file'} can't be written: {error.strerror}; {advice}, and run the "
            "same command again"
        ) from error
