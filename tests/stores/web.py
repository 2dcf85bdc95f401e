"""A folder served over HTTP as stores serve, with ranges and ETags; and a proxy that misbehaves.

Web(folder)         http://127.0.0.1:PORT/…
Proxy(port)         the same of any server, with rules: Rule(when, do), each for so many answers
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server:
    """Answers by `handler`, in a thread each, until `close`."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass


class Web(Server):
    """Serves the files below `folder`."""

    def __init__(self, folder: Path) -> None:
        class Handler(Quiet):
            def do_GET(self) -> None:
                file = folder / self.path.lstrip("/")
                if not file.is_file():
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                raw = file.read_bytes()
                status, start, end = 200, 0, len(raw)
                if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    status, start = 206, int(match[1])
                    end = min(int(match[2]) + 1, end) if match[2] else end
                self.send_response(status)
                self.send_header("Content-Length", str(end - start))
                self.send_header("Accept-Ranges", "bytes")
                stamp = file.stat().st_mtime_ns
                self.send_header("ETag", f'"{hashlib.md5(raw).hexdigest()}-{stamp}"')
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(raw)}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(raw[start:end])

            do_HEAD = do_GET

        super().__init__(Handler)


@dataclass
class Seen:
    """A request as the proxy got it, and how many bytes of a body it got."""

    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int = 0

    @property
    def of_shard(self) -> bool:
        return ".tar" in self.path


_REFUSALS = {
    "refuse": (503, "SlowDown"),
    "deny": (403, "ExpiredToken"),
    "skew": (403, "RequestTimeTooSkewed"),
    "absent": (404, "NoSuchKey"),
    "mismatch": (412, "PreconditionFailed"),
}


@dataclass
class Rule:
    """`do` to each of the next `times` answers to requests of which `when` is true.

    `do` is one of `_REFUSALS`, "cut" (half the body, then close), "reset", "lie"
    (other bytes of the same length), "letter" (another one in each transcript), "garble" (no HTTP) or
    "hang".
    """

    do: str
    when: Callable[[Seen], bool] = lambda seen: seen.method == "GET" and seen.of_shard
    times: int = 1


@dataclass
class Log:
    seen: list[Seen] = field(default_factory=list)
    body_bytes: int = 0


class Proxy(Server):
    """Hands requests on to a server of this machine, after `delay_s`, but for what `rules` say."""

    def __init__(self, to_port: int, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.rules: list[Rule] = []
        self.log = Log()
        self.done: list[str] = []
        lock = threading.Lock()
        proxy = self

        class Handler(Quiet):
            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen = Seen(self.command, self.path, dict(self.headers))
                with lock:
                    proxy.log.seen.append(seen)
                    rule = next((r for r in proxy.rules if r.times and r.when(seen)), None)
                    if rule:
                        rule.times -= 1
                        proxy.done.append(rule.do)
                time.sleep(proxy.delay_s)
                do = rule.do if rule else ""
                if do in _REFUSALS:
                    status, code = _REFUSALS[do]
                    raw = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw if self.command != "HEAD" else b"")
                    return
                if do == "hang":
                    time.sleep(3600)
                if do == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()
                    self.close_connection = True
                    return
                if do == "garble":
                    self.wfile.write(b"\0\1\2 no answer\r\n\r\n")
                    self.close_connection = True
                    return
                self._hand_on(seen, body, do)

            def _hand_on(self, seen: Seen, body: bytes, do: str) -> None:
                there = http.client.HTTPConnection("127.0.0.1", to_port, timeout=60)
                there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    there.putheader(name, value)
                there.endheaders(body)
                answer = there.getresponse()
                raw = answer.read()
                there.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                if answer.getheader("Content-Length") is None:
                    self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                if do == "cut":
                    raw, self.close_connection = raw[: len(raw) // 2], True
                if do == "lie":
                    raw = bytes(b ^ 0x55 for b in raw)
                if do == "letter":
                    raw = raw.replace("дума".encode(), "дуга".encode())
                if self.command == "GET":
                    seen.body_bytes = len(raw)
                    with lock:
                        proxy.log.body_bytes += len(raw)
                self.wfile.write(raw)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

        super().__init__(Handler)
