"""Adapters on a model hub: fetched as data, with their size known before, and pushed in one commit.

user/name@revision ──fetch──> {adapter.json, adapter.safetensors: bytes}   from the hub or its cache
{file: bytes} ──push──> one commit of user/name       has: whether a repository holds a file

`huggingface_hub` says where the hub is (HF_ENDPOINT), who asks (HF_TOKEN) and where its cache lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from salsa_dist.errors import UserError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


def name_and_revision(text: str) -> tuple[str, str | None] | None:
    """`user/name` or `user/name@revision` as its two parts; None: it is no hub name."""
    match = _NAME.fullmatch(text)
    return None if match is None else (match[1], match[2])


def fetch(name: str, revision: str | None, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Fetch files of a repository, all of one commit; without a network, from the cache.

    Args:
        name: `user/name`.
        revision: branch, tag or commit; None: the main branch.
        limits: the files, and how many bytes each may have; a larger one is not fetched.

    Raises:
        UserError: the hub can't be reached, or has no such repository, revision or file; a file is too
            large.
    """
    from huggingface_hub import hf_hub_download

    commit = None
    found = {}
    with _reaching(name, revision, "fetched"):
        for file, most in limits.items():
            about = hf_hub_download(name, file, revision=revision, dry_run=True)
            if about.file_size is None or about.file_size > most:
                size = about.file_size or "unknown"
                raise UserError(
                    f"adapter {name} on the hub: its {file} has {size} bytes, an adapter's has at most "
                    f"{most:,}: it was not fetched"
                )
            if commit not in (None, about.commit_hash):
                raise UserError(f"adapter {name} on the hub changed while it was fetched: try again")
            commit = about.commit_hash
            path = Path(hf_hub_download(name, file, revision=revision))
            if path.stat().st_size > most:
                raise UserError(f"adapter {name} on the hub: its {file} is larger than the hub said")
            found[file] = path.read_bytes()
    return found


def has(name: str, revision: str | None, file: str) -> bool:
    """Whether a repository with this file exists, on the hub or in its cache; fetches nothing."""
    from huggingface_hub import hf_hub_download

    try:
        with _reaching(name, revision, "fetched"):
            hf_hub_download(name, file, revision=revision, dry_run=True)
    except UserError:
        return False
    return True


def push(
    name: str,
    files: Mapping[str, bytes],
    *,
    revision: str | None = None,
    private: bool = False,
    message: str,
) -> str:
    """Put `files` into a repository, which is made if need be, in one commit; gives its address.

    Args:
        name: `user/name`.
        revision: a branch, which is made if need be; None: the main branch.
        private: of a repository that is made now.

    Raises:
        UserError: the name is none, the hub can't be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if (parts := name_and_revision(name)) is None or parts[1] is not None:
        raise UserError(f"{name!r} is no name on a hub: give user/name, and the branch by --revision")
    with _reaching(name, revision, "pushed"):
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        added = [CommitOperationAdd(file, raw) for file, raw in files.items()]
        return str(api.create_commit(name, added, commit_message=message, revision=revision).commit_url)


@contextmanager
def _reaching(name: str, revision: str | None, done: str) -> Iterator[None]:
    """Turn errors of the hub's client into one line."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as e:  # the transport is a library of its own, and changes with the client
        at = f"{name}@{revision}" if revision else name
        if isinstance(e, errors.GatedRepoError):
            why = "its owner asks for consent: give it on its page, then set HF_TOKEN"
        elif isinstance(e, errors.RevisionNotFoundError):
            why = f"it has no revision {revision or 'main'}: look at its page"
        elif isinstance(e, errors.RemoteEntryNotFoundError):
            why = "it has no adapter.json or no adapter.safetensors: it holds no adapter"
        elif isinstance(e, errors.RepositoryNotFoundError):
            why = "no folder here and nothing on the hub has this name, or HF_TOKEN must be set"
        elif isinstance(e, errors.LocalEntryNotFoundError) or _no_network(e):
            why = "the hub can't be reached: look at the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        elif isinstance(e, errors.HfHubHTTPError | errors.LocalTokenNotFoundError):
            status = getattr(getattr(e, "response", None), "status_code", None)
            why = " ".join(str(e).split())[:200]
            if status in (401, 403):
                why = f"the hub refuses ({status}): set HF_TOKEN to a token that may write there"
        else:
            raise
        raise UserError(f"adapter {at} can't be {done}: {why}") from e


def _no_network(error: BaseException) -> bool:
    """Errors of the client's transport, whichever library it is."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OfflineModeIsEnabled", "TransportError", "ConnectionError", "TimeoutError"})
