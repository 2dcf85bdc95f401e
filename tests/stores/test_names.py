"""Names of shards: what they mean, and one line, exit status 2, where they can't be used."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
from aiohttp import ClientError
from fsspec.registry import known_implementations
from web import Proxy, Rule, Web

from salsa_dist import cli
from salsa_dist.config import load_config
from salsa_dist.corpus.foreign import index_tars, reshard
from salsa_dist.corpus.lint import Bounds, lint
from salsa_dist.corpus.upload import upload
from salsa_dist.data import store_object
from salsa_dist.data.index import FILE, ShardIndex
from salsa_dist.data.reading import read_clip
from salsa_dist.data.store_object import opened
from salsa_dist.errors import UserError
from salsa_dist.log import causes
from salsa_dist.places import EXTRAS, Cache, Remote, place
from salsa_dist.store_errors import clean_error, cleanly


def main(arguments: list[str]) -> int:
    """The exit status of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["salsa-dist", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def memory() -> Any:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_what_names_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert place("~/shards") == Path("/home/me/shards")
    assert place("file:///data/mine") == Path("/data/mine")
    assert place("s3://bucket/some/where/") == Remote("s3://bucket/some/where")
    assert str(place("hf://datasets/user/name") / "bg") == "hf://datasets/user/name/bg"
    assert place("az://container/x").name == "x"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("foo://bucket/x", "foo:// is unknown; known are s3://, gs://"),
        ("s3://", "name a bucket"),
        ("s3://me:hidden@bucket/x", "s3://bucket/x: a name of shards has no"),
        ("https://host/x?X-Amz-Signature=hidden", "https://host/x: a name of shards has no"),
        ("https://host/x#hidden", "https://host/x: a name of shards has no"),
    ],
)
def test_names_that_mean_nothing_are_refused_without_what_they_hide(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["shards", "stats", name], ["shards", "lint", name]):
        assert main(arguments) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert len(shown.err.splitlines()) == 1
        assert "hidden" not in shown.err + shown.out
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps({"run": "run", "base": {"name": "b"}, "data": {"shards": name}, "adapters": []})
    )
    with pytest.raises(UserError) as caught:
        load_config(config)
    assert said in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("scheme", [s for s in EXTRAS if EXTRAS[s]])
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = {"class": "no_such_driver.FileSystem", "err": "no driver"}
    monkeypatch.setitem(known_implementations, "absent", none)
    absent = lambda *_, **__: fsspec.get_filesystem_class("absent")  # noqa: E731
    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(UserError, match=rf"{scheme}://.*pip install 'salsa-dist\[{EXTRAS[scheme]}\]'"):
        ShardIndex.load(Remote(f"{scheme}://bucket/x", Cache(retry_s=0.1)))


def test_a_name_that_no_bucket_can_have_and_an_account_that_is_not_named_are_said_at_once() -> None:
    from botocore.exceptions import ParamValidationError

    assert clean_error(ParamValidationError(report="Invalid bucket name")).errno == errno.ENOENT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsspec.core.url_to_fs", lambda *_, **__: fsspec.get_filesystem_class("none"))
        patch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
        patch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
        with pytest.raises(UserError, match=r"az://x/index\.json .*\(no credentials: set AZURE"):
            ShardIndex.load("az://x")
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", "none")  # which the driver's error repeats
        with pytest.raises(UserError, match=r"by AZURE_STORAGE_CONNECTION_STRING: look") as caught:
            ShardIndex.load("az://x")
        assert "none" not in str(caught.value)


def test_the_extras_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {x for x in EXTRAS.values() if x} <= project["optional-dependencies"].keys()


def test_a_run_stays_on_a_file_system(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    tree = {"run": "s3://bucket/run", "base": {"name": "b"}, "data": {"shards": "x"}, "adapters": []}
    config.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"run: it must be a local folder"):
        load_config(config)


def test_what_lacks_an_index_or_a_bucket_is_said(served: tuple[Path, Proxy], memory: Any) -> None:
    _, proxy = served
    for name in ("memory://none", f"{proxy.url}/none"):
        with pytest.raises(UserError, match=r"has no index\.json, or there is no such bucket"):
            ShardIndex.load(name)


def test_denied_is_said_at_once(served: tuple[Path, Proxy], capsys: pytest.CaptureFixture[str]) -> None:
    _, proxy = served
    proxy.rules.append(Rule("deny", lambda seen: True, times=99))
    assert main(["shards", "stats", f"{proxy.url}/noise"]) == 2
    shown = capsys.readouterr().err
    assert "access is denied: look at the credentials" in shown
    assert len(shown.splitlines()) == 1
    assert len(proxy.done) < 5


def test_errors_of_drivers_lose_signatures_and_passwords() -> None:
    said = clean_error(RuntimeError("GET https://me:pw@host/x?X-Amz-Signature=abc&k=1 failed"))
    assert str(said.strerror) == "RuntimeError: GET https://host/x failed"


def test_debug_shows_nothing_that_a_driver_knew(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ClientError("GET https://host/x?X-Amz-Signature=hidden failed")

    for name in ("info", "find", "open", "cat_file"):
        monkeypatch.setattr(type(memory), name, fails)
    place = Remote("memory://bucket/x", Cache(retry_s=0.1))
    with pytest.raises(UserError) as caught:
        ShardIndex.load(place)
    assert "hidden" not in causes(caught.value)
    for read in (place.files, place.open, place.read_bytes):
        with pytest.raises(OSError, match="ClientError: GET https://host/x failed") as failed:
            read()
        assert "hidden" not in causes(failed.value)


def test_a_bug_of_ours_is_not_told_as_a_failure_of_the_store(
    noise: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(noise, place("memory://x/noise"))  # type: ignore[arg-type]
    remote = Remote("memory://x/noise", Cache(retry_s=0.1))
    shard = ShardIndex.load(remote).shards[0]

    def fails(info: dict[str, Any]) -> str:
        raise KeyError("of ours")

    monkeypatch.setattr(store_object, "identity", fails)
    for read in (
        lambda: opened(remote / shard.path),
        lambda: read_clip(remote, shard, shard.entries[0]),
    ):
        with pytest.raises(KeyError, match="of ours") as caught:
            read()
        assert caught.traceback[-1].name == "fails"
    monkeypatch.undo()
    found = opened(remote / shard.path)
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: None)  # bytes(None) is ours
    with pytest.raises(TypeError):
        found.read(0, 10)


def test_errors_of_python_in_a_driver_are_of_the_store() -> None:
    with pytest.raises(OSError, match=r"JSONDecodeError: "):
        cleanly(lambda: json.loads("<html>"))
    with pytest.raises(OSError, match=r"ValueError: "):
        cleanly(lambda: fsspec.get_filesystem_class("none"))
    with pytest.raises(OSError, match=r"TypeError: the JSON object must be"):
        cleanly(lambda: json.loads(None))  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"ValueError: Invalid IPv6 URL"):
        cleanly(lambda: urlsplit("http://[x"))
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(OSError, match=r"RuntimeError: Event loop is closed"):
        cleanly(lambda: loop.call_soon(print))


def test_shards_are_made_checked_and_resharded_by_name(
    noise: Path, tmp_path: Path, memory: Any
) -> None:
    upload(noise, place("memory://made/noise"))  # type: ignore[arg-type]
    assert ShardIndex.load("memory://made/noise").hash == ShardIndex.load(noise).hash
    assert lint(place("memory://made/noise"), Bounds()) == lint(noise, Bounds())
    small, _ = reshard(place("memory://made/noise"), place("memory://made/small"), 10)
    assert len(small.shards) == 20
    assert lint(place("memory://made/small"), Bounds())[0] == []
    with pytest.raises(UserError, match="is there: name another"):
        reshard(place("memory://made/noise"), place("memory://made/small"), 10)
    # A shard that was changed is found.
    path = f"/made/noise/{small.shards[0].path}"
    memory.pipe_file(path, memory.cat_file(path)[:-1] + b"x")
    assert [p.kind for p in lint(place("memory://made/noise"), Bounds())[0]] == ["shard"]


def test_tars_of_others_get_an_index(noise: Path, tmp_path: Path, memory: Any) -> None:
    upload(noise, place("memory://others/x"))  # type: ignore[arg-type]
    memory.rm_file(f"/others/x/{FILE}")
    memory.rm_file("/others/x/index.columns")
    made, left_out = index_tars(place("memory://others/x"))
    assert not left_out
    found = ShardIndex.load("memory://others/x")
    assert found.hash == made.hash
    assert memory.exists(f"/others/x/{FILE}")
    shard = found.shards[0]
    assert read_clip(found.folder, shard, shard.entries[0]).text.startswith("дума")


def test_an_index_of_what_cannot_be_written_is_kept_here(
    noise: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    upload(noise, place("memory://locked/x"))  # type: ignore[arg-type]
    memory.rm_file(f"/locked/x/{FILE}")
    memory.rm_file("/locked/x/index.columns")

    def denied(*_: Any) -> None:
        raise PermissionError(13, "access is denied")

    monkeypatch.setattr(Remote, "put", denied)
    index_tars(place("memory://locked/x"))
    assert not memory.exists(f"/locked/x/{FILE}")
    assert list((own_cache / "indexes").glob("own-*"))
    assert sum(s.samples for s in ShardIndex.load("memory://locked/x").shards) == 200


def test_the_index_is_fetched_once(served: tuple[Path, Proxy]) -> None:
    _, proxy = served
    for _ in range(3):
        ShardIndex.load(f"{proxy.url}/noise")
    assert sum(s.method == "GET" and s.path.endswith(FILE) for s in proxy.log.seen) == 1


def test_an_index_that_was_replaced_is_fetched_again(noise: Path, tmp_path: Path) -> None:
    web = Web(tmp_path)
    (tmp_path / "x").mkdir()
    for count in (2, 3):
        index = ShardIndex.load(noise)
        part = ShardIndex(tmp_path, "part", 16_000, 0, {}, index.shards[:count])
        part.save(tmp_path / "x")
        assert len(ShardIndex.load(f"{web.url}/x").shards) == count
    web.close()


def test_the_command_line_builds_into_a_store(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clips import wave

    lines = []
    for i in range(24):
        wave(tmp_path / f"{i}.wav", 0.5, 300 + 20 * i)
        lines.append(json.dumps({"audio": f"{i}.wav", "text": f"дума {i}", "speaker": f"s{i}"}))
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    arguments = ["shards", "build", "jsonl", str(tmp_path / "my.jsonl"), "--language", "bg"]
    arguments += ["--licence", "CC0", "--workers", "1"]
    assert main([*arguments, "memory://built/mine"]) == 0
    assert main([*arguments, str(tmp_path / "mine")]) == 0
    assert ShardIndex.load("memory://built/mine").hash == ShardIndex.load(tmp_path / "mine").hash
    assert main([*arguments, "memory://built/mine"]) == 0  # it is there
