"""A hub on loopback with one repository, as far as huggingface_hub and datasets ask for one; it notes
requests."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(
    name: str, folder: Path, kind: str = "models", sent: Counter[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has `folder` under `name`, and its requests as "METHOD FILE".

    Args:
        kind: models, or datasets.
        sent: is given the bytes that were sent of each file.
    """
    asked: list[str] = []
    place = f"/{name}" if kind == "models" else f"/{kind}/{name}"

    def entries(below: str = "", deep: bool = True) -> list[dict[str, Any]]:
        """Files of the folder `below`, and its folders where only its own entries are asked for."""
        found = sorted((folder / below).rglob("*") if deep else (folder / below).iterdir())
        named = [(p, p.relative_to(folder).as_posix()) for p in found if p.is_file() or not deep]
        return [
            {"path": own, "rfilename": own, "oid": "0" * 40}
            | ({"type": "directory"} if p.is_dir() else {"type": "file", "size": p.stat().st_size})
            for p, own in named
        ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            api = f"/api/{kind}/{name}"
            if not path.startswith(api):
                self._file(path)
            else:
                asked.append(f"{self.command} api")
                tree = {"id": name, "modelId": name, "sha": COMMIT, "siblings": entries(), "tags": []}
                verb, revision, below = [*path.removeprefix(api).strip("/").split("/", 2), "", ""][:3]
                if revision not in ("", "main", COMMIT):
                    self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                elif verb == "tree" and not (folder / unquote(below)).is_dir():
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                else:
                    deep = "recursive=true" in self.path.lower()
                    found = entries(unquote(below), deep) if verb == "tree" else tree
                    self._send(200, json.dumps(found).encode(), {})

        def _file(self, path: str) -> None:
            revision, _, own = path.removeprefix(f"{place}/resolve/").partition("/")
            file = folder / own
            asked.append(f"{self.command} {own}")
            if revision not in ("main", COMMIT) or not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                raw = file.read_bytes()
                tag = hashlib.sha256(raw).hexdigest()
                self._send(200, raw, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        def _send(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
            if (wanted := self.headers.get("Range")) and status == 200:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last or len(raw) - 1), len(raw) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(raw)}"
                raw, status = raw[int(first) : end + 1], 206
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)
                if sent is not None:
                    sent[self.path.partition("?")[0].rpartition("/")[2]] += len(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
