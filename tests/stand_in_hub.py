"""A stand-in of a model hub on loopback: a mock that speaks the few requests of a fetch and of a push.

    with StandInHub() as hub: os.environ["HF_ENDPOINT"] = hub.url

It keeps commits in memory and takes every file in the commit itself; the real hub may ask for large
ones to be put into its object store first. Writing needs the token `secret`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

Files = dict[str, bytes]


class StandInHub:
    """Repositories as `{name: {branch or commit: {file: bytes}}}`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.asked: list[str] = []
        self.private: set[str] = set()
        self.claimed_size: int | None = None  # instead of a file's own
        self.message = ""
        hub = self

        class Handler(_Handler):
            at = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def put(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A commit of these files; gives its name."""
        repository = self.repositories.setdefault(name, {})
        tree = {**repository.get(branch, {}), **files}
        commit = hashlib.sha1(repr((branch, sorted(tree.items()))).encode()).hexdigest()
        repository[branch] = repository[commit] = tree
        return commit

    def commit_of(self, name: str, revision: str) -> str:
        tree = self.repositories[name][revision]
        return next(c for c, t in self.repositories[name].items() if t is tree and len(c) == 40)

    def __enter__(self) -> StandInHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
        """Let `huggingface_hub`, which read the environment when it was imported, ask here."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setenv("HF_TOKEN", "secret")


class _Handler(BaseHTTPRequestHandler):
    at: StandInHub

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        self._file(body=True)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [unquote(p) for p in urlsplit(self.path).path.strip("/").split("/")]
        self.at.asked.append(f"POST {self.path}")
        if parts[-1] == "validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer secret":
            return self._json({"error": "Invalid username or password."}, 401)
        if parts == ["api", "repos", "create"]:
            asked = json.loads(raw)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in self.at.repositories
            self.at.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":  # by the client's version
                self.at.private.add(name)
            return self._json({"url": f"{self.at.url}/{name}"}, 409 if there else 200)
        _, _, user, own, verb, revision = parts
        name = f"{user}/{own}"
        if name not in self.at.repositories:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        if verb == "branch":
            main = self.at.repositories[name].get("main", {})
            self.at.repositories[name].setdefault(revision, dict(main))
            return self._json({})
        if verb == "preupload":
            files = [f["path"] for f in json.loads(raw)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._json({"files": modes})
        assert verb == "commit", verb
        lines = [json.loads(line) for line in raw.splitlines()]
        self.at.message = lines[0]["value"]["summary"]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = self.at.put(name, added, revision)
        url = f"{self.at.url}/{name}/commit/{commit}"
        return self._json({"success": True, "commitUrl": url, "commitOid": commit})

    def _file(self, body: bool) -> None:
        parts = [unquote(p) for p in urlsplit(self.path).path.strip("/").split("/")]
        self.at.asked.append(f"{self.command} {self.path}")
        name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else ""
        repository = self.at.repositories.get(name)
        if repository is None:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        if revision not in repository:
            return self._json({"error": "Revision not found"}, 404, "RevisionNotFound")
        raw = repository[revision].get("/".join(parts[4:]))
        if raw is None:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.at.commit_of(name, revision))
        self.send_header("Content-Length", str(self.at.claimed_size or len(raw)))
        self.end_headers()
        if body:
            self.wfile.write(raw)
        return None

    def _json(self, tree: object, status: int = 200, code: str = "") -> None:
        raw = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass
