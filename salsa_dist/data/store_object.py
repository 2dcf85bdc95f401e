"""One version of an object in a store: a replaced object is never mistaken for it.

    opened(remote) ──► StoreObject(identity, size) ──read(start, end)──► its bytes, or Replaced

A version is named by the ETag (`If-Match`) on S3, Azure and over HTTP, by the generation on GCS, by the
commit on a hub. Servers of S3 and HTTP may ignore the ETag; so that of the answer is compared.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from salsa_dist.places import Remote, identity
from salsa_dist.store_errors import by_a_driver, clean_error, cleanly


class AnotherObject(OSError):
    """An object that is not the one in the cache, or in the index."""


class Replaced(AnotherObject):
    """The object is another than when its first bytes were fetched."""


@dataclass(frozen=True)
class StoreObject:
    """One version of an object; for one thread at a time.

    Attributes:
        identity: what changes when it is replaced.
        size: bytes, where the store tells.
        pinned: whether the store is asked for this very version, so that it need not be opened again.
    """

    identity: str
    size: int | None
    pinned: bool
    _read: Callable[[int, int], bytes]

    def read(self, start: int, end: int) -> bytes:
        """Bytes `[start, end)`. Raises: Replaced: the store has another object now; OSError."""
        try:
            return self._read(start, end)
        except AnotherObject:
            raise
        except Exception as e:
            if not by_a_driver(e):
                raise
            failed = _replaced() if _says_another(e) else clean_error(e)
        raise failed


def opened(remote: Remote) -> StoreObject:
    """Raises: OSError."""
    return cleanly(lambda: _opened(remote))


def _opened(remote: Remote) -> StoreObject:
    fs, path = remote.driver()
    scheme = remote.url.partition(":")[0]
    if scheme == "hf":
        file = fs.open(path, "rb", cache_type="none")
        # A path without a commit is that of a bucket, whose objects may be replaced.
        return _object(file.details, "@" in path, lambda start, end: _of_file(file, start, end))
    info = fs.info(path)
    if scheme == "s3":
        return _object(info, True, lambda *part: _of_s3(fs, path, info, *part))
    if scheme == "gs":
        url = f"{fs.url(path)}&generation={info['generation']}"

        def of_generation(start: int, end: int) -> bytes:
            try:
                return bytes(fs.call("GET", url, headers={"Range": f"bytes={start}-{end - 1}"})[1])
            except FileNotFoundError:
                raise _replaced() from None

        return _object(info, True, of_generation)
    if scheme in ("http", "https", "az"):
        from fsspec.asyn import sync

        fetch = _of_azure if scheme == "az" else _of_web
        return _object(info, True, lambda *part: sync(fs.loop, fetch, fs, path, info, *part))
    return _object(info, False, lambda start, end: bytes(fs.cat_file(path, start=start, end=end)))


def _object(info: dict[str, Any], pinned: bool, read: Callable[[int, int], bytes]) -> StoreObject:
    size = info.get("size")
    return StoreObject(identity(info), None if size is None else int(size), pinned, read)


def _of_file(file: Any, start: int, end: int) -> bytes:
    file.seek(start)
    return bytes(file.read(end - start))


def _of_s3(fs: Any, path: str, info: dict[str, Any], start: int, end: int) -> bytes:
    from fsspec.asyn import sync

    bucket, key, _ = fs.split_path(path)
    tag = info.get("ETag")
    which = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
    answer = fs.call_s3("get_object", fs.req_kw, **which, **({"IfMatch": tag} if tag else {}))
    raw = sync(fs.loop, _closed, answer["Body"])
    # Some servers do not heed IfMatch, rclone's among them.
    if answer.get("ETag", tag) != tag:
        raise _replaced()
    return raw


async def _closed(body: Any) -> bytes:
    """Read the rest of an answer of aiobotocore, and close it.

    It is closed even when it breaks off: else its connection counts as used for as long as the error
    lives, and once all are used (`max_pool_connections`), each request waits for ever.
    """
    async with body:
        return bytes(await body.read())


async def _of_azure(fs: Any, path: str, info: dict[str, Any], start: int, end: int) -> bytes:
    from azure.core import MatchConditions

    container, blob, _ = fs.split_path(path)
    how = {"etag": info["etag"], "match_condition": MatchConditions.IfNotModified}
    async with fs.service_client.get_blob_client(container=container, blob=blob) as client:
        stream = await client.download_blob(offset=start, length=end - start, **how)
        return bytes(await stream.readall())


async def _of_web(fs: Any, url: str, info: dict[str, Any], start: int, end: int) -> bytes:
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    tag = info.get("ETag", "")
    if tag and not tag.startswith("W/"):
        headers["If-Match"] = tag
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers=headers) as answer:
        if answer.status == 412:
            raise _replaced()
        answer.raise_for_status()
        for name in ("ETag", "Last-Modified"):
            if answer.headers.get(name, info.get(name)) != info.get(name):
                raise _replaced()
        whole = answer.status == 200 and (start, end) == (0, info.get("size"))
        if not whole and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError(errno.EIO, "it gave no such part of the file (Range)")
        return bytes(await answer.read())


def _replaced() -> Replaced:
    return Replaced(errno.EIO, "it was replaced")


def _says_another(e: Exception) -> bool:
    return (
        type(e).__name__ in ("FileExpired", "ResourceModifiedError")
        or "pre-condition" in str(e).lower()
    )
