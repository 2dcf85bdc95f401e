"""Against a real object store: S3's own driver, its errors, and a run that is the same to the bit."""

from __future__ import annotations

import datetime
import gc
import logging
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from test_reading import STEPS, heard, of_folder
from web import Proxy, Rule

from salsa_dist import places
from salsa_dist.corpus.upload import upload
from salsa_dist.data import reading
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.store_object import Replaced, opened
from salsa_dist.data.traffic import traffic
from salsa_dist.errors import UserError
from salsa_dist.places import Cache, Remote


@pytest.fixture
def bucket(s3: Proxy, noise: Path, tmp_path: Path) -> Remote:
    place = Remote(f"s3://tests/{tmp_path.name}", Cache(tmp_path / "cache", retry_s=30.0))
    upload(noise, place)
    return place


def test_it_gives_the_clips_of_a_folder_and_each_byte_once(
    s3: Proxy, bucket: Remote, noise: Path
) -> None:
    before = traffic()
    assert heard(bucket, world=2) == of_folder(noise)
    assert heard(bucket) == of_folder(noise)
    size = sum(shard.bytes for shard in ShardIndex.load(bucket).shards)
    assert traffic().since(before).fetched_bytes <= 1.05 * size


@pytest.mark.parametrize("do", ["refuse", "cut", "reset", "deny", "skew"])
def test_what_fails_is_tried_again_and_counted(s3: Proxy, bucket: Remote, noise: Path, do: str) -> None:
    # Ahead fetches once each; more than those must fail for a reader to meet it.
    times = 90 if do == "reset" else 40  # aiohttp itself asks again after a reset
    s3.rules.append(Rule(do, times=times))
    before = traffic()
    assert heard(bucket) == of_folder(noise)
    assert s3.done.count(do) == times
    assert traffic().since(before).retries > 0


def test_answers_that_break_off_do_not_use_up_the_connections(
    s3: Proxy, bucket: Remote, noise: Path
) -> None:
    shard = ShardIndex.load(bucket).shards[0]
    found = opened(bucket / shard.path)
    s3.rules.append(Rule("cut", times=12))
    whole: list[bytes] = []

    def read() -> None:
        for _ in range(12):
            with pytest.raises(OSError, match=r"bytes|payload|reset|closed|Incomplete"):
                found.read(1000, 2000)
        whole.append(found.read(1000, 2000))

    reader = threading.Thread(target=read, daemon=True)
    gc.disable()  # which would give them back by and by
    try:
        reader.start()
        reader.join(20)
    finally:
        gc.enable()
    assert whole == [(noise / shard.path).read_bytes()[1000:2000]]


def test_an_object_that_is_replaced_meanwhile_is_noticed(
    s3: Proxy, bucket: Remote, noise: Path
) -> None:
    index = ShardIndex.load(bucket)
    same, other = index.shards[:2]
    for shard in (same, other):
        for *_, raw in reading.read_samples(bucket, [(shard, list(shard.entries)[:2])]):
            assert not isinstance(raw, Exception)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    content = (noise / other.path).read_bytes()
    at = content.index(b"text", list(other.entries)[-1].offset) + 8
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    store.pipe_file(f"{str(bucket).removeprefix('s3://')}/{other.path}", changed)
    (bucket / same.path).put(noise / same.path)
    found = [raw for *_, raw in reading.read_samples(bucket, [(same, list(same.entries))])]
    assert not any(isinstance(raw, Exception) for raw in found)
    found = [raw for *_, raw in reading.read_samples(bucket, [(other, list(other.entries)[10:12])])]
    assert len(found) == 2  # of a part that no other byte was changed in
    assert all(getattr(raw, "kind", "") == "shard" for raw in found)
    assert "replaced" in str(found[0])


def test_a_server_that_does_not_heed_if_match_gives_no_byte_of_another_object(
    bucket: Remote, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (shard.path for shard in ShardIndex.load(bucket).shards[:2])
    found = opened(bucket / one)
    assert found.read(1000, 2000) == (noise / one).read_bytes()[1000:2000]
    (bucket / one).put(noise / other)
    store, _ = bucket.driver()
    ask = store.call_s3
    monkeypatch.setattr(store, "call_s3", lambda *a, IfMatch, **more: ask(*a, **more))
    with pytest.raises(Replaced):
        found.read(1000, 2000)


def test_errors_are_one_clean_line(
    bucket: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "salsa_dist")
    for name in ("s3://no-such-bucket-here/x", "s3://tests/nothing"):
        with pytest.raises(UserError, match=r"has no index\.json, or there is no such bucket"):
            ShardIndex.load(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-is-wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(UserError, match=r"access is denied: look at the credentials") as caught:
        ShardIndex.load(Remote(str(bucket), Cache(retry_s=1)))
    assert "a-secret" not in str(caught.value) + caplog.text
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(UserError, match=r"access is denied: look at the credentials"):
        ShardIndex.load(Remote(str(bucket), Cache(retry_s=1)))


def test_what_hangs_is_asked_again(
    s3: Proxy, bucket: Remote, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ANSWER_S", 1)
    s3.rules.append(Rule("hang", times=20))
    before = traffic()
    started = time.monotonic()
    assert heard(bucket) == of_folder(noise)
    assert s3.done == ["hang"] * 20
    assert traffic().since(before).retries > 0
    assert time.monotonic() - started < 120


def test_a_clock_that_is_off_is_said(bucket: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    late = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: late.replace(tzinfo=None))
    with pytest.raises(UserError, match=r"access is denied: look at the credentials .*and the clock"):
        ShardIndex.load(Remote(str(bucket), Cache(retry_s=1)))


def test_no_listing_is_needed_to_read(s3: Proxy, bucket: Remote, noise: Path) -> None:
    """One that lags behind what was written can't change a sample."""
    begun = len(s3.log.seen)
    assert heard(bucket, 3) == heard(noise, 3)
    asked = s3.log.seen[begun:]
    assert asked
    assert not [seen.path for seen in asked if "list-type" in seen.path or "prefix=" in seen.path]


def test_delay_is_hidden_once_it_runs(s3: Proxy, bucket: Remote, noise: Path) -> None:
    s3.delay_s = 0.05
    found: dict[int, Any] = heard(bucket, STEPS)
    assert found == of_folder(noise)
