"""Shards of a store give the clips of a folder, whatever the link and the store do."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import socket
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from web import Proxy, Rule

from salsa_dist import places
from salsa_dist.data import cached_shard, patience, reading, shard_cache
from salsa_dist.data.cached_shard import BLOCK
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import ClipReader
from salsa_dist.data.sampling import LANES, POOL_STEPS, AdapterPlan
from salsa_dist.data.shard_cache import cache_of
from salsa_dist.data.store_object import Replaced, opened
from salsa_dist.data.traffic import traffic
from salsa_dist.places import Cache, Remote

CLIPS = 200
STEPS = CLIPS // 8


def heard(
    folder: Any, steps: int = STEPS, world: int = 1, bad: list[Any] | None = None
) -> dict[int, list[tuple[str, str, bytes]]]:
    """Key, text and audio of the clips of each step, over all ranks."""
    index = ShardIndex.load(folder)
    plan = AdapterPlan(index.shards, 8, 4, 1, 2.0)
    readers = [ClipReader(index.folder, plan, steps, rank, world, 2.0) for rank in range(world)]
    found: dict[int, list[tuple[str, str, bytes]]] = {}
    for t in range(steps):
        shares = [own.step(t) for own in readers]
        for share in shares:
            if bad is None:
                assert not share.bad, share.bad[0]
            else:
                bad += share.bad
        found[t] = sorted((c.key, c.text, c.audio.tobytes()) for s in shares for c, _ in s.clips)
    return found


@cache
def of_folder(folder: Path) -> dict[int, list[tuple[str, str, bytes]]]:
    """What `heard` gives of shards that nobody changes."""
    return heard(folder)


def remote(proxy: Proxy, tmp_path: Path, **more: Any) -> Remote:
    cache = Cache(tmp_path / "cache", **{"retry_s": 20.0, **more})
    return Remote(f"{proxy.url}/noise", cache)


@pytest.mark.parametrize("world", [1, 2])
def test_cold_and_warm_it_gives_the_clips_of_a_folder(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path, world: int
) -> None:
    _, proxy = served
    wanted = of_folder(noise)
    place = remote(proxy, tmp_path)
    assert heard(place, world=world) == wanted
    fetched = proxy.log.body_bytes
    assert heard(place, world=world) == wanted
    assert proxy.log.body_bytes == fetched  # all of it lies here
    shard_cache._caches.clear()  # as another process would find it
    assert heard(place) == wanted
    assert proxy.log.body_bytes == fetched


def test_each_byte_comes_once_an_epoch(served: tuple[Path, Proxy], tmp_path: Path) -> None:
    _, proxy = served
    place = remote(proxy, tmp_path)
    before = traffic()
    heard(place, world=4)
    heard(place, world=2)
    size = sum(shard.bytes for shard in ShardIndex.load(place).shards)
    index = sum(p.stat().st_size for p in (tmp_path / "cache/indexes").glob("*/*"))
    assert proxy.log.body_bytes <= 1.05 * size + index
    own = traffic().since(before)
    assert own.fetched_bytes <= 1.05 * size
    assert own.cached_bytes > size
    assert own.requests < 200


@pytest.mark.parametrize("do", ["refuse", "cut", "reset", "garble", "deny", "absent"])
def test_what_fails_is_tried_again_and_counted(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path, do: str
) -> None:
    _, proxy = served
    # Ahead fetches once each; more than those must fail for a reader to meet it.
    times = 90 if do == "reset" else 60  # aiohttp itself asks again after a reset
    proxy.rules.append(Rule(do, times=times))
    before = traffic()
    assert heard(remote(proxy, tmp_path)) == of_folder(noise)
    assert proxy.done.count(do) == times
    assert traffic().since(before).retries > 0


def test_what_hangs_is_asked_again(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    monkeypatch.setattr(places, "ANSWER_S", 1)
    proxy.rules.append(Rule("hang", times=20))
    before = traffic()
    started = time.monotonic()
    assert heard(remote(proxy, tmp_path)) == of_folder(noise)
    assert proxy.done == ["hang"] * 20
    assert traffic().since(before).retries > 0
    assert time.monotonic() - started < 120


def test_a_store_that_never_answers_right_is_given_up_in_time(
    served: tuple[Path, Proxy], tmp_path: Path
) -> None:
    _, proxy = served
    place = remote(proxy, tmp_path, retry_s=1.0)
    index = ShardIndex.load(place)
    proxy.rules.append(Rule("refuse", lambda seen: seen.of_shard, times=10**9))
    started = time.monotonic()
    wanted = [(shard, list(shard.entries)) for shard in index.shards]
    found = [raw for _, _, raw in reading.read_samples(place, wanted)]
    assert time.monotonic() - started < 30
    assert len(found) == CLIPS
    assert all(getattr(raw, "kind", "") == "shard" for raw in found)
    assert "503" in str(found[0])


def test_a_shard_that_is_gone_is_waited_for_once(
    served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, proxy = served
    monkeypatch.setattr(patience, "ABSENT_S", 2.0)
    place = remote(proxy, tmp_path)
    index = ShardIndex.load(place)
    gone, other = index.shards[:2]
    (folder / gone.path).unlink()
    for most_s in (10.0, 1.0):
        started = time.monotonic()
        found = [x for *_, x in reading.read_samples(place, [(gone, list(gone.entries))])]
        assert all("there is no such file" in str(x) for x in found)
        assert time.monotonic() - started < most_s
    [(*_, raw)] = reading.read_samples(place, [(other, list(other.entries)[:1])])
    assert not isinstance(raw, Exception)


@pytest.mark.parametrize("do", ["absent", "refuse"])
def test_no_step_waits_for_more_than_one_missing_shard(
    served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str
) -> None:
    """Whether its own samples lie in shards that can't be had, or what stands in for them."""
    _, proxy = served
    place = remote(proxy, tmp_path)
    index = ShardIndex.load(place)
    there = [shard.path for shard in index.shards[:2]]
    gone = lambda seen: seen.of_shard and not seen.path.endswith(tuple(there))  # noqa: E731
    proxy.rules.append(Rule(do, gone, times=10**9))
    would_wait: list[float] = []  # for each shard that is given up, instead of doing so

    def tried(_: str, retry_s: float, read: Any, *, absent_s: float, **more: Any) -> Any:
        try:
            return read()
        except FileNotFoundError:
            would_wait.append(min(absent_s, retry_s))
            raise
        except OSError:
            would_wait.append(retry_s)
            raise

    def read_samples(*args: Any) -> list[Any]:
        begun = len(would_wait)
        found = list(read(*args))
        in_turn.append(max(would_wait[begun:], default=0.0))  # those of one read are asked for at once
        return found

    read = reading.read_samples
    monkeypatch.setattr(patience, "tried", tried)
    monkeypatch.setattr(patience, "SLOWEST_WAIT_S", 0.0)
    monkeypatch.setattr(reading, "read_samples", read_samples)
    monkeypatch.setattr(shard_cache.ShardCache, "start", lambda *_: None)
    own = ClipReader(place, AdapterPlan(index.shards, 8, 4, 1, 2.0), STEPS, 0, 1, 2.0)
    waits = []
    for t in range(LANES):
        in_turn: list[float] = []
        own.step(t)
        waits.append(sum(in_turn))
    assert len(would_wait) > len(index.shards)
    assert 0 < max(waits) <= place.cache.retry_s, waits


def test_one_try_after_the_time_of_a_step_is_used_up_gives_no_shard_up() -> None:
    own, step = patience.Patience(20.0), patience.Waited(20.0)
    for name in ("one", "two", "three"):

        def fails(name: str = name) -> None:
            raise OSError(5, name)

        with pytest.raises(OSError, match=name):  # it is asked for
            own.tried(name, fails, step, final=(), again=lambda: None)


def test_a_step_of_a_store_that_is_down_ends_in_time_and_one_line_tells_of_it(
    served: tuple[Path, Proxy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, proxy = served
    monkeypatch.setattr(patience, "TELL_S", 0.0)
    monkeypatch.setattr(patience, "_teller", patience._Teller())
    place = remote(proxy, tmp_path, retry_s=2.0)
    index = ShardIndex.load(place)
    proxy.rules.append(Rule("refuse", lambda seen: True, times=10**9))
    own = ClipReader(place, AdapterPlan(index.shards, 8, 4, 1, 2.0), STEPS, 0, 1, 2.0)
    started = time.monotonic()
    step = own.step(0)
    assert (step.clips, step.hopeless) == ([], 8)
    # Each sample, and each of the 16 that may stand in for it, would wait for two seconds.
    assert time.monotonic() - started < 20
    said = capsys.readouterr().err.splitlines()
    [line] = [own for own in said if "trying again" in own]
    assert line.startswith(f"{place}/bg/")
    assert "503" in line
    assert re.search(r"; trying again for up to [12] s$", line), line


@pytest.mark.parametrize("heeded", [True, False])
def test_no_byte_of_what_replaces_a_shard_is_taken_for_its_own(
    served: tuple[Path, Proxy], tmp_path: Path, heeded: bool
) -> None:
    """Between the question for its ETag and the read, whether or not the server heeds `If-Match`."""
    folder, proxy = served
    place = remote(proxy, tmp_path)
    path = folder / ShardIndex.load(place).shards[0].path
    found = opened(place / str(path.relative_to(folder)))
    raw = path.read_bytes()
    assert found.read(1000, 2000) == raw[1000:2000]
    path.write_bytes(bytes(b ^ 1 for b in raw))
    if heeded:
        proxy.rules.append(Rule("mismatch", lambda seen: "If-Match" in seen.headers))
    with pytest.raises(Replaced):
        found.read(1000, 2000)
    assert proxy.done == ["mismatch"] * heeded


# The second reads no shard whole, whose sha256 would tell.
@pytest.mark.parametrize(("do", "steps"), [("lie", STEPS), ("letter", 3)])
def test_bytes_that_lie_are_fetched_again(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path, do: str, steps: int
) -> None:
    _, proxy = served
    place = remote(proxy, tmp_path)
    proxy.rules.append(Rule(do, times=2))
    # And none is bad.
    assert heard(place, steps) == {t: c for t, c in of_folder(noise).items() if t < steps}
    assert proxy.done == [do] * 2


def test_a_single_clip_that_came_damaged_is_fetched_again(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path
) -> None:
    _, proxy = served
    place = remote(proxy, tmp_path)
    shard = ShardIndex.load(place).shards[0]
    proxy.rules.append(Rule("lie"))
    found = reading.read_clip(place, shard, shard.entries[0])
    assert np.array_equal(found.audio, reading.read_clip(noise, shard, shard.entries[0]).audio)
    assert proxy.done == ["lie"]


def test_a_shard_that_is_there_whole_is_checked(served: tuple[Path, Proxy], tmp_path: Path) -> None:
    folder, proxy = served
    index = ShardIndex.load(folder)
    shard = index.shards[0]
    raw = bytearray((folder / shard.path).read_bytes())
    raw[raw.index(b"text", list(shard.entries)[-1].offset) + 8] ^= 1  # what nothing else tells
    (folder / shard.path).write_bytes(raw)
    place = remote(proxy, tmp_path)
    half = len(shard.entries) // 2
    first = [x for *_, x in reading.read_samples(place, [(shard, list(shard.entries)[:half])])]
    assert not any(isinstance(x, Exception) for x in first)
    rest = [x for *_, x in reading.read_samples(place, [(shard, list(shard.entries)[half:])])]
    assert all("its sha256 is not that of the index" in str(x) for x in rest)


def test_a_shard_that_is_replaced_meanwhile_is_noticed(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path
) -> None:
    folder, proxy = served
    place = remote(proxy, tmp_path)
    index = ShardIndex.load(place)
    same, other = index.shards[0], index.shards[1]
    for shard in (same, other):  # its first samples
        assert all(
            not isinstance(raw, Exception)
            for *_, raw in reading.read_samples(place, [(shard, list(shard.entries)[:2])])
        )
    # One with the same content, written again; one with other audio in the same places.
    time.sleep(0.01)
    (folder / same.path).write_bytes((folder / same.path).read_bytes())
    raw = bytearray((folder / other.path).read_bytes())
    late = list(other.entries)[-1]
    at = raw.index(b"text", late.offset)
    raw[at + 8] ^= 1  # a letter of a transcript, which no check but the whole shard's tells
    (folder / other.path).write_bytes(raw)
    found = [x for *_, x in reading.read_samples(place, [(same, list(same.entries))])]
    assert not any(isinstance(x, Exception) for x in found)
    found = [x for *_, x in reading.read_samples(place, [(other, list(other.entries)[10:12])])]
    assert len(found) == 2  # of a part that no other byte was changed in
    assert all(getattr(x, "kind", "") == "shard" for x in found)
    assert "replaced" in str(found[0])
    assert heard(place, 3, bad=[]) != {}


def test_the_cache_keeps_to_its_size(noise: Path, served: tuple[Path, Proxy], tmp_path: Path) -> None:
    _, proxy = served
    most = 1_000_000
    place = remote(proxy, tmp_path, bytes=most)
    assert heard(place, 2 * STEPS) == heard(noise, 2 * STEPS)
    taken = sum(p.stat().st_blocks * 512 for p in (tmp_path / "cache/shards").glob("*.shard"))
    assert 0 < taken <= 1.3 * most


def test_on_a_full_disk_it_goes_on_in_memory(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    pwrite = os.pwrite

    def full(fd: int, raw: Any, at: int) -> int:
        if "memfd" not in os.readlink(f"/proc/self/fd/{fd}") and len(raw) > BLOCK // 2:
            raise OSError(28, "No space left on device")
        return pwrite(fd, raw, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert heard(remote(proxy, tmp_path), 10) == {t: c for t, c in of_folder(noise).items() if t < 10}


def test_what_a_crash_of_the_machine_may_have_torn_is_fetched_again(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    place = remote(proxy, tmp_path)
    heard(place, 2)  # parts of shards
    for path in (tmp_path / "cache/shards").glob("*.shard"):
        with path.open("r+b") as file:
            file.write(bytes(BLOCK))  # marked as there, and never written
    monkeypatch.setattr(cached_shard, "_boot", lambda: "another")
    assert heard(place) == of_folder(noise)


class Node:
    """A node that shares a cache folder with others."""

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch) -> None:
        self.cache, self.patched = shard_cache.ShardCache(Cache(folder)), patched

    def fetched(self, place: Remote, count: int, host: str, boot: str) -> int:
        """Bytes that it fetches for the first clips of the first shard."""
        self.patched.setattr(socket, "gethostname", lambda: host)
        self.patched.setattr(cached_shard, "_boot", lambda: boot)
        shard, before = ShardIndex.load(place).shards[0], traffic()
        for *_, raw in self.cache.read(place, [(shard, shard.entries[:count])], patience.Waited()):
            assert not isinstance(raw, Exception)
        return traffic().since(before).fetched_bytes


def test_nodes_that_share_a_folder_fetch_each_block_once_a_node(
    served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    place, node = remote(proxy, tmp_path), Node(tmp_path / "cache", monkeypatch)
    found = [node.fetched(place, 1, host, host) for host in ("a", "b") * 3]
    assert found == [BLOCK, BLOCK, 0, 0, 0, 0]


def test_only_a_complete_shard_survives_a_reboot(
    served: tuple[Path, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    place, node = remote(proxy, tmp_path), Node(tmp_path / "cache", monkeypatch)
    whole = ShardIndex.load(place).shards[0]
    assert node.fetched(place, 1, "a", "first") == BLOCK
    assert node.fetched(place, len(whole.entries), "a", "second") == whole.bytes
    assert node.fetched(place, len(whole.entries), "a", "third") == 0


def test_files_of_other_nodes_and_of_earlier_versions_count(
    noise: Path, served: tuple[Path, Proxy], tmp_path: Path
) -> None:
    _, proxy = served
    most = 1_000_000
    place = remote(proxy, tmp_path)
    shard = ShardIndex.load(place).shards[0]
    # As version 0.1 named it, without a host.
    facts = f"{place / shard.path}\n{shard.sha256}\n{shard.bytes}"
    old = tmp_path / f"cache/shards/{hashlib.sha256(facts.encode()).hexdigest()[:32]}.shard"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes([1]) * 2 * most)
    os.utime(old, (0, 0))
    assert heard(place, 1) == {0: of_folder(noise)[0]}
    assert old.stat().st_size == 2 * most  # neither read nor written
    assert heard(remote(proxy, tmp_path, bytes=most)) == of_folder(noise)
    assert not old.exists()


def _read_all(place: Remote, start: Any) -> None:
    start.wait()
    heard(place)


def test_processes_share_what_they_fetch(served: tuple[Path, Proxy], tmp_path: Path) -> None:
    _, proxy = served
    proxy.delay_s = 0.02
    place = remote(proxy, tmp_path)
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [context.Process(target=_read_all, args=(place, start)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    size = sum(shard.bytes for shard in ShardIndex.load(place).shards)
    index = sum(p.stat().st_size for p in (tmp_path / "cache/indexes").glob("*/*"))
    assert proxy.log.body_bytes <= 1.05 * size + index


def test_it_reads_ahead_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reach = {}
    for step_s in (0.01, 1.0, 20.0):
        ahead = reading._Ahead()
        for t in range(60):
            now[0] += step_s
            reach[step_s] = ahead.until(t) - t
    assert reach[0.01] == (POOL_STEPS - 1) * LANES
    assert reach[1.0] == pytest.approx(reading.AHEAD_S, abs=2)
    assert reach[20.0] == LANES


def test_the_loop_waits_for_little_once_it_runs(served: tuple[Path, Proxy], tmp_path: Path) -> None:
    _, proxy = served
    proxy.delay_s = 0.05
    place = remote(proxy, tmp_path)
    index = ShardIndex.load(place)
    own = ClipReader(place, AdapterPlan(index.shards, 8, 4, 1, 2.0), STEPS, 0, 1, 2.0)
    own.step(0)
    time.sleep(2)
    before = traffic()
    for t in range(1, LANES):
        own.step(t)
    # Without reading ahead each of these pools would wait for two answers.
    assert traffic().since(before).waited_s < 0.05 * 2 * (LANES - 1) / 2


def test_other_systems_than_linux_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salsa_dist.errors import UserError

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="shards in a store are read on Linux only"):
        cache_of(Cache(tmp_path / "mac"))


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    from salsa_dist.errors import UserError

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache .*file/shards can't be written .*set data\.cache"):
        cache_of(Cache(tmp_path / "file")).usable_folder()


def test_a_shards_file_tells_its_boot_and_identity(served: tuple[Path, Proxy], tmp_path: Path) -> None:
    _, proxy = served
    heard(remote(proxy, tmp_path), 1)
    path = next((tmp_path / "cache/shards").glob("*.shard"))
    raw = path.read_bytes()
    head = json.loads(raw[raw.index(b'{"boot"') :].split(b"\0")[0])
    assert head["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert head["identity"].startswith("ETag=")
