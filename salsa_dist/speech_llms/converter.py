"""The command line of a converter: `python -m MODULE SOURCE … DEST`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from salsa_dist.errors import UserError
from salsa_dist.log import causes, result, tell


def run_converter(
    convert: Callable[[list[Path], Path], Path], usage: str, arguments: Sequence[str]
) -> int:
    """Convert as `arguments` say; returns the exit status, 2 after a mistake of the user.

    Args:
        convert: takes the sources and where to write; gives what it wrote.
        usage: is printed where the arguments are not of that form.
    """
    words = list(arguments)
    if len(words) < 2 or any(word.startswith("-") for word in words):
        result(usage)
        return 0 if words and words[0] in ("-h", "--help") else 2
    *sources, dest = map(Path, words)
    try:
        result(f"wrote {convert(sources, dest)}")
    except UserError as e:
        tell(f"error: {e}", causes(e))
        return 2
    return 0
