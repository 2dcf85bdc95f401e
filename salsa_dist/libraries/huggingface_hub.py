"""The files of a base in a folder, or in this machine's cache of a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def commit_of(name: str, revision: str | None, fetched: bool = False) -> str | None:
    """The commit of a hub name in this machine's cache; None: it is unknown.

    If the base was `fetched` just now, the hub is not asked again.

    Assumes that the path of a file in the hub's cache is `…/snapshots/COMMIT/FILE`. transformers 5.24
    no longer stores the commit in a config.

    Seen: transformers 5.17 and 5.24.
    Else: None. The base's revision is then `unknown`, so adapters for different commits look alike.
    Test: test_the_commit_of_a_hub_name_is_known
    """
    found = _in_cache(name, revision) if fetched else file_in(name, "config.json", revision)
    if found is None or found.parent.parent.name != "snapshots":
        return None
    return found.parent.name


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def file_in(name: str, wanted: str, revision: str | None) -> Path | None:
    """A file of a folder or hub name, fetched if necessary; None: there is no such file.

    Assumes that `cached_file` returns None then, with `_raise_exceptions_for_missing_entries=False`.

    Seen: transformers 5.17 and 5.24.
    Else: a TypeError for a hub name, before anything is loaded. Folders do not need this function.
    Test: test_a_file_that_is_not_there_is_none
    """
    if Path(name).is_dir():
        file = Path(name, wanted)
        return file if file.is_file() else None
    from transformers.utils import cached_file

    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(name, wanted, **options)
    return None if found is None else Path(found)
