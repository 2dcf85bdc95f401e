"""Shards in a dataset of a hub: `hf://datasets/user/name`, of a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfFileSystem, constants
from test_reading import heard, of_folder
from web import Proxy, Quiet, Rule, Server

from salsa_dist import places
from salsa_dist.data import shard_cache
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import read_samples
from salsa_dist.data.traffic import traffic
from salsa_dist.errors import UserError
from salsa_dist.places import Cache, Remote

NAME, COMMIT = "user/noise", "0123456789abcdef0123456789abcdef01234567"


class Hub(Server):
    """A hub with one dataset, a folder per commit, of which the last is main."""

    def __init__(self, folder: Path) -> None:
        self.commits = {COMMIT: folder}
        commits = self.commits
        api, files = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve"

        class Handler(Quiet):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == api:
                    path = f"{api}/revision/main"
                for start, answer in (
                    (f"{api}/tree", self._list),
                    (f"{api}/revision", self._tell),
                    (files, self._file),
                ):
                    if path.startswith(f"{start}/"):
                        revision, _, name = path.removeprefix(f"{start}/").partition("/")
                        commit = [*commits][-1] if revision == "main" else revision
                        if commit in commits:
                            answer(commit, name)
                            return
                self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def _tell(self, commit: str, name: str) -> None:
                self._json(200, {"id": NAME, "sha": commit, "siblings": [], "tags": []})

            def _list(self, commit: str, name: str) -> None:
                folder = commits[commit]
                at = folder / name
                deep = "recursive=true" in self.path.lower()
                found: list[dict[str, Any]] = []
                for path in sorted(at.rglob("*") if deep else at.iterdir()):
                    below = str(path.relative_to(folder))
                    digest = hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest()
                    size = path.stat().st_size if path.is_file() else 0
                    kind = "file" if path.is_file() else "directory"
                    found.append({"type": kind, "path": below, "size": size, "oid": digest})
                self._json(200, found)

            def _file(self, commit: str, name: str) -> None:
                raw = (commits[commit] / name).read_bytes()
                first, last = 0, len(raw) - 1
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted:
                    first, last = int(wanted[1]), min(int(wanted[2]), last)
                self.send_response(206 if wanted else 200)
                self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
                self.send_header("X-Repo-Commit", commit)
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
def server(noise: Path) -> Iterator[Hub]:
    hub = Hub(noise)
    yield hub
    hub.close()


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy in front of a hub, where `hf://` leads."""
    proxy = Proxy(server.port)
    monkeypatch.setattr(constants, "ENDPOINT", proxy.url)
    template = proxy.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    as_a_new_process()
    yield proxy
    as_a_new_process()
    proxy.close()


def as_a_new_process() -> None:
    HfFileSystem.clear_instance_cache()
    places._commits.clear()
    shard_cache._caches.clear()


def test_offline_it_is_not_tried_again(
    hub: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = Remote(f"hf://datasets/{NAME}", Cache(tmp_path / "cache", retry_s=600.0))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so no hub is asked: set it to 0"):
        ShardIndex.load(place)
    assert "trying again" not in capsys.readouterr().err


def test_it_gives_the_clips_of_a_folder_and_each_byte_once(
    hub: Proxy, noise: Path, tmp_path: Path
) -> None:
    place = Remote(f"hf://datasets/{NAME}", Cache(tmp_path / "cache", retry_s=30.0))
    before = traffic()
    hub.rules.append(Rule("cut", times=5))
    assert heard(place, world=2) == of_folder(noise)
    assert heard(place) == of_folder(noise)
    size = sum(shard.bytes for shard in ShardIndex.load(place).shards)
    assert traffic().since(before).fetched_bytes <= 1.05 * size


def test_a_dataset_that_is_not_there_is_said(hub: Proxy) -> None:
    with pytest.raises(UserError, match=r"has no index\.json, or there is no such data set"):
        ShardIndex.load("hf://datasets/user/none")


def test_a_push_meanwhile_changes_no_sample(
    server: Hub, hub: Proxy, noise: Path, tmp_path: Path
) -> None:
    place = Remote(f"hf://datasets/{NAME}", Cache(tmp_path / "cache", retry_s=30.0))
    index = ShardIndex.load(place)
    shard = index.shards[0]
    half = len(shard.entries) // 2

    def read(part: slice) -> list[Any]:
        return [raw for *_, raw in read_samples(place, [(shard, list(shard.entries)[part])])]

    wanted = [raw for *_, raw in read_samples(noise, [(shard, list(shard.entries))])]
    assert read(slice(half)) == wanted[:half]
    pushed = tmp_path / "pushed"
    shutil.copytree(noise, pushed)
    raw = bytearray((pushed / shard.path).read_bytes())
    raw[raw.index(b"text", list(shard.entries)[-1].offset) + 8] ^= 1  # only the sha256 tells
    (pushed / shard.path).write_bytes(raw)
    server.commits["f" * 40] = pushed
    assert read(slice(None)) == wanted
    # A process that starts now has the new one, which is not what its index says.
    as_a_new_process()
    shutil.rmtree(tmp_path / "cache/shards")
    found = read(slice(None))
    assert all(getattr(x, "kind", "") == "shard" for x in found)
    assert "its sha256 is not that of the index" in str(found[0])
    # By its revision the old one is still to be had.
    place = replace(place, url=f"{place.url}@{COMMIT}")
    assert read(slice(None)) == wanted


def test_a_hub_that_does_not_tell_its_commit_is_said_in_one_line(hub: Proxy) -> None:
    hub.rules.append(Rule("garble", lambda seen: True, times=10**6))
    with pytest.raises(UserError, match=r"index\.json can't be read \("):
        ShardIndex.load(Remote(f"hf://datasets/{NAME}", Cache(retry_s=0.5)))
