"""Errors of object stores and hubs: any error of a driver becomes an `OSError` that can be shown.

Its `strerror` is a line without query strings, which may hold signatures, and nothing of the driver's
is behind it. What neither a driver nor a socket raises is a bug of ours: it stays as it is.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_DENIED = re.compile("Credential|Auth|Token|Gated|Forbidden|Unauthorized|AccessDenied|Refresh")
# The drivers, and the packages by which they talk to stores and read the answers.
_DRIVERS = {
    *("fsspec", "s3fs", "aiobotocore", "botocore", "gcsfs", "google", "adlfs", "azure"),
    *("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "requests", "urllib3"),
    *("aiohttp", "yarl", "http", "json", "xml", "asyncio", "urllib", "cryptography"),
}


def clean_error(e: BaseException) -> OSError:
    """A driver's error as an error that can be shown."""
    # That of HTTP says that there is no such file of any answer that it can't use, such as 503.
    cause = e.__cause__
    if isinstance(e, FileNotFoundError) and type(cause).__module__.startswith("aiohttp") and cause:
        return clean_error(FileNotFoundError() if _status(cause) in (404, 410) else cause)
    # A name that no bucket can have is refused by S3's driver before it asks.
    if (
        isinstance(e, FileNotFoundError)
        or _status(e) in (404, 410)
        or "ParamValidation" in type(e).__name__
    ):
        return FileNotFoundError(errno.ENOENT, "there is no such file, folder or bucket")
    kind = type(e).__name__
    if kind == "OfflineModeIsEnabled":  # of huggingface_hub; no other try changes it
        why = "HF_HUB_OFFLINE is set, so no hub is asked: set it to 0, or use a folder"
        return PermissionError(errno.EACCES, why)
    denied = isinstance(e, PermissionError) or _status(e) in (401, 403) or _DENIED.search(kind)
    if denied or str(e).startswith("Forbidden:"):  # of gcsfs
        return PermissionError(
            errno.EACCES, "access is denied: look at the credentials in the environment, and the clock"
        )
    if isinstance(e, TimeoutError) or "Timeout" in kind:
        return TimeoutError(errno.ETIMEDOUT, "no answer in time")
    said = getattr(e, "strerror", None) or str(e)
    text = re.sub(r"\?\S*", "", " ".join(str(said).split()))
    text = re.sub(r"//[^/\s@]*@", "//", text)
    return OSError(getattr(e, "errno", None) or errno.EIO, f"{kind}: {text[:200]}" if text else kind)


def _status(e: BaseException) -> int:
    """The status of the HTTP answer in an error; 0 if it has none."""
    told = (getattr(e, name, None) for name in ("status", "status_code", "code"))
    return next((int(text) for x in told if (text := str(x)).isdigit()), 0)


def cleanly(read: Callable[[], T]) -> T:
    """The result of `read`. A driver's error becomes a clean `OSError`, without the driver's error as
    its cause, which --debug would show."""
    try:
        return read()
    except Exception as e:
        if not by_a_driver(e):
            raise
        failed = clean_error(e)
    raise failed


def by_a_driver(e: Exception) -> bool:
    """Whether a driver or a socket raised the error, so that the message names the store."""
    if isinstance(e, ImportError):  # no driver is installed
        return False
    kinds = (OSError, EOFError, TimeoutError, asyncio.TimeoutError)
    if isinstance(e, kinds) or _package(type(e).__module__) in _DRIVERS:
        return True
    # Drivers raise errors of Python too: for a bucket's name, an answer that they can't read, or by a
    # bug of theirs while the network fails.
    last = e.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and _package(last.tb_frame.f_globals.get("__name__", "")) in _DRIVERS


def _package(module: str) -> str:
    return module.partition(".")[0]


class CleanFile:
    """A driver's open file, with clean errors."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return cleanly(lambda: bytes(self._file.read(size)))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> CleanFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
