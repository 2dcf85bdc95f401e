"""A hub on loopback with one repository, as far as huggingface_hub asks for one; it notes requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has `folder` under `name`, and its requests as "METHOD FILE"."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            api = f"/api/models/{name}"
            if not path.startswith(api):
                self._file(path)
            else:
                asked.append(f"{self.command} api")
                files = [
                    {"type": "file", "path": p.name, "rfilename": p.name, "size": p.stat().st_size}
                    | {"oid": "0" * 40}
                    for p in sorted(folder.iterdir())
                ]
                tree = {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": []}
                listing = path.startswith(f"{api}/tree")
                self._send(200, json.dumps(files if listing else tree).encode(), {})

        def _file(self, path: str) -> None:
            file = folder / path.rpartition("/")[2]
            asked.append(f"{self.command} {file.name}")
            if not path.startswith(f"/{name}/resolve/") or not file.is_file():
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

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
