"""Shards behind a proxy: in a folder served over HTTP, and in a real store where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import noise_shards
from seaweedfs import KEY, SECRET, SeaweedFS, why_not
from web import Proxy, Web

from salsa_dist.data import shard_cache


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight shards of some 450 kB; 200 clips, of which each has a text of its own."""
    folder = tmp_path_factory.mktemp("shards") / "noise"
    noise_shards(folder, 200, 25, (4_000, 16_000))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SALSA_DIST_CACHE", str(tmp_path / "cache"))
    shard_cache._caches.clear()
    return tmp_path / "cache"


@pytest.fixture
def served(noise: Path, tmp_path: Path) -> Iterator[tuple[Path, Proxy]]:
    """A copy of the shards that may be changed, and the proxy in front of it."""
    import shutil

    folder = tmp_path / "served"
    shutil.copytree(noise, folder / "noise")
    web = Web(folder)
    proxy = Proxy(web.port)
    yield folder / "noise", proxy
    proxy.close()
    web.close()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    if reason := why_not():
        if os.environ.get("SALSA_REQUIRE_STORES") == "1":
            pytest.fail(f"tests with a real store were left out: {reason}")
        pytest.skip(f"left out: {reason}")
    server = SeaweedFS(tmp_path_factory.mktemp("weed") / "data")
    yield server
    server.close()


@pytest.fixture
def s3(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy in front of a real store, where `s3://` leads; bucket `tests` is there."""
    import fsspec

    proxy = Proxy(seaweedfs.port)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    fsspec.filesystem("s3").clear_instance_cache()
    store = fsspec.filesystem("s3", use_listings_cache=False)
    if not store.exists("tests"):
        store.mkdir("tests")
    yield proxy
    fsspec.filesystem("s3").clear_instance_cache()
    proxy.close()
