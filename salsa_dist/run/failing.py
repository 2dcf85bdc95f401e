"""Failure of a rank: it writes its error first, before anything is closed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from salsa_dist.errors import StartAgain, UserError
from salsa_dist.full_disk import full_disk_in_one_line
from salsa_dist.log import causes
from salsa_dist.placement.ranks import Ranks
from salsa_dist.run.failure_file import write_failure
from salsa_dist.versions import named_in


@contextmanager
def failure_first(ranks: Ranks) -> Iterator[None]:
    """If the block raises, write the error to disk and tell all ranks, before anything is closed."""
    try:
        with full_disk_in_one_line():
            yield
    except Exception as error:
        user_error = isinstance(error, UserError)
        text = str(error) if user_error else traceback.format_exc() + (named_in(error) or "")
        final = user_error and not isinstance(error, StartAgain)
        write_failure(ranks.rank, text, final, causes(error) if user_error else "")
        if ranks.peers is not None:
            ranks.peers.tell(f"{type(error).__name__}: {error}"[:1000], final)
        raise
