"""What is wrong with a store is one line, exit status 2, before the base is read; and credentials stay
where they were: no file and no word of a run has them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from seaweedfs import KEY, SECRET
from test_names import main
from tiny import make_config
from web import Proxy, Rule

from salsa_dist.corpus.upload import upload
from salsa_dist.places import Remote

ROOT = Path(__file__).parents[2]
TOKEN = "token-of-the-tests"


@pytest.fixture
def bucket(s3: Proxy, tiny_shards: Path, tmp_path: Path) -> Remote:
    place = Remote(f"s3://tests/{tmp_path.name}")
    upload(tiny_shards, place)
    return place


@pytest.fixture
def refused(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The one line with which training on such shards is refused."""

    def line(shards: object, *more: str) -> str:
        # A base that is not there: whoever looks at it says so.
        config = make_config(tmp_path, tmp_path / "no-base", tiny_shards)
        words = [f"data.shards={shards}", "data.retry_s=1", *more]
        assert main(["train", str(config), *words]) == 2
        shown = capsys.readouterr()
        assert len(shown.err.splitlines()) == 1, shown.err
        assert not shown.out
        assert not (tmp_path / "run/events.jsonl").exists()
        assert "no-base" not in shown.err
        return shown.err

    return line


def test_what_the_store_lacks(s3: Proxy, bucket: Remote, refused: Callable[..., str]) -> None:
    for name in ("s3://no-such-bucket-here", "s3://tests/no/such/key"):
        assert f"{name} has no index.json, or there is no such bucket" in refused(name)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    for name in ("index.json", "index.columns"):
        store.rm_file(f"{str(bucket).removeprefix('s3://')}/{name}")
    assert "make the index of tars with 'salsa-dist shards index'" in refused(bucket)


def test_what_the_environment_lacks(
    s3: Proxy, bucket: Remote, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    fsspec.filesystem("s3").clear_instance_cache()
    assert "access is denied: look at the credentials" in refused(bucket)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    fsspec.filesystem("s3").clear_instance_cache()
    assert "access is denied: look at the credentials" in refused(bucket)
    with monkeypatch.context() as bare:
        bare.setitem(sys.modules, "s3fs", None)
        bare.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        assert "pip install 'salsa-dist[s3]'" in refused(bucket)
    assert "foo:// is unknown" in refused("foo://bucket/x")


def test_a_store_that_is_not_there_is_given_up(
    s3: Proxy, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    assert "s3://tests/x/index.json can't be read" in refused("s3://tests/x")


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("part", ["indexes", "shards"])
def test_a_cache_that_takes_nothing(
    bucket: Remote,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    why: int,
    part: str,
    own_cache: Path,
) -> None:
    write = Path.write_bytes

    def fails(path: Path, data: Any) -> int:
        if own_cache / part in path.parents:
            raise OSError(why, os.strerror(why))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    said = refused(bucket)
    assert str(own_cache / part) in said
    assert os.strerror(why) in said


def test_no_file_and_no_word_of_a_run_has_credentials(
    s3: Proxy,
    bucket: Remote,
    tiny_base: Path,
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    training = {"steps": 4, "lr": 0.02, "save_every_s": 0}
    data = {"shards": str(bucket), "clips_per_step": 5, "readers": 4}
    config = make_config(tmp_path, tiny_base, tiny_shards, training=training, data=data)
    monkeypatch.setenv("SALSA_LOG", "debug")
    for do in ("refuse", "cut", "deny"):
        s3.rules.append(Rule(do, times=3))
    launch = [sys.executable, str(ROOT / "launchers/slurm.py"), "train", "--config", str(config)]
    launch += ["--cluster", "local", "--nodes", "1", "--tasks-per-node", "2"]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=500)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    run = str(tmp_path / "run")
    for words in (["evaluate", str(config)], ["report", run], ["plan", str(config)]):
        assert main(["--debug", *words]) == 0
    for name, wrong in (
        ("AWS_SECRET_ACCESS_KEY", f"wrong-{SECRET}"),
        ("AWS_SESSION_TOKEN", TOKEN),
    ):
        with monkeypatch.context() as other:
            other.setenv(name, wrong)
            fsspec.filesystem("s3").clear_instance_cache()
            assert main(["--debug", "shards", "stats", str(bucket)]) == 2
    said += "".join(capfd.readouterr())
    assert str(bucket) in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("events.jsonl" in str(path) for path in files)
    had = json.loads((tmp_path / "run/report.json").read_text())["training"]["store"]
    assert had["fetched_bytes"] > 0
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in said
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
