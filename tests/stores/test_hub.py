"""Shards in a dataset of a hub: `hf://datasets/user/name`, of a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfFileSystem, constants
from test_reading import heard
from web import Proxy, Quiet, Rule, Server

from salsa_dist.data.index import ShardIndex
from salsa_dist.data.shard_cache import traffic
from salsa_dist.errors import UserError
from salsa_dist.places import Cache, Remote

NAME, COMMIT = "user/noise", "0123456789abcdef0123456789abcdef01234567"


class Hub(Server):
    """A hub with one dataset, as far as `HfFileSystem` asks; files are answered by another server."""

    def __init__(self, folder: Path) -> None:
        api = f"/api/datasets/{NAME}"

        class Handler(Quiet):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith(f"{api}/tree/main"):
                    self._list(folder / path.removeprefix(f"{api}/tree/main").strip("/"))
                elif path in (api, f"{api}/revision/main"):
                    self._json(200, {"id": NAME, "sha": COMMIT, "siblings": [], "tags": []})
                elif path.startswith(f"/datasets/{NAME}/resolve/main/"):
                    self._file(folder / path.removeprefix(f"/datasets/{NAME}/resolve/main/"))
                else:
                    self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def _list(self, at: Path) -> None:
                deep = "recursive=true" in self.path.lower()
                found: list[dict[str, Any]] = []
                for path in sorted(at.rglob("*") if deep else at.iterdir()):
                    name = str(path.relative_to(folder))
                    digest = hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest()
                    size = path.stat().st_size if path.is_file() else 0
                    kind = "file" if path.is_file() else "directory"
                    found.append({"type": kind, "path": name, "size": size, "oid": digest})
                self._json(200, found)

            def _file(self, path: Path) -> None:
                raw = path.read_bytes()
                first, last = 0, len(raw) - 1
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted:
                    first, last = int(wanted[1]), min(int(wanted[2]), last)
                self.send_response(206 if wanted else 200)
                self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(raw)}")
                self._body(raw[first : last + 1])

            def _json(self, status: int, tree: Any, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self._body(json.dumps(tree).encode())

            def _body(self, raw: bytes) -> None:
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(raw)

        super().__init__(Handler)


@pytest.fixture
def hub(noise: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy in front of a hub, where `hf://` leads."""
    server = Hub(noise)
    proxy = Proxy(server.port)
    monkeypatch.setattr(constants, "ENDPOINT", proxy.url)
    template = proxy.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    yield proxy
    HfFileSystem.clear_instance_cache()
    proxy.close()
    server.close()


def test_it_gives_the_clips_of_a_folder_and_each_byte_once(
    hub: Proxy, noise: Path, tmp_path: Path
) -> None:
    place = Remote(f"hf://datasets/{NAME}", Cache(tmp_path / "cache", retry_s=30.0))
    before = traffic()
    hub.rules.append(Rule("cut", times=5))
    assert heard(place, world=2) == heard(noise)
    assert heard(place) == heard(noise)
    size = sum(shard.bytes for shard in ShardIndex.load(place).shards)
    assert traffic().since(before).fetched_bytes <= 1.05 * size


def test_a_dataset_that_is_not_there_is_said(hub: Proxy) -> None:
    with pytest.raises(UserError, match=r"has no index\.json, or there is no such bucket"):
        ShardIndex.load("hf://datasets/user/none")
