"""Reading a rank's clips: few opens, few bytes, and bad samples replaced alike everywhere."""

import builtins
import io
import os
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from clips import noise_shards

from salsa_dist.data import shards as shards_module
from salsa_dist.data.augment import Augment
from salsa_dist.data.index import Shard, ShardIndex
from salsa_dist.data.reading import Bad, ClipReader
from salsa_dist.data.sampling import LANES, POOL_STEPS, AdapterPlan

CLIPS, PER_SHARD = 480, 40


def write(folder: Path, clips: int = CLIPS, per_shard: int = PER_SHARD) -> ShardIndex:
    return noise_shards(folder, clips, per_shard, (400, 1600))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("reading") / "shards").folder


def plan(index: ShardIndex, seconds: float | None = None) -> AdapterPlan:
    clips = 8 if seconds is None else None
    return AdapterPlan(index.select("train", "bg"), clips, 4, 1, 2.0, seconds_per_step=seconds)


def reader(folder: Path, steps: int = 10_000, rank: int = 0, world: int = 1, **more: Any) -> ClipReader:
    own = plan(ShardIndex.load(folder), more.pop("seconds", None))
    return ClipReader(folder, own, steps, rank, world, 2.0, **more)


class Counted:
    """What is opened and read."""

    opens: ClassVar[Counter[str]] = Counter()
    reads: ClassVar[list[tuple[str, int, int]]] = []


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    Counted.opens, Counted.reads = Counter(), []
    paths: dict[int, str] = {}

    def opened(path: Any, mode: str = "r", **more: Any) -> Any:
        file = builtins.open(path, mode, **more)  # noqa: SIM115
        Counted.opens[str(path)] += 1
        paths[file.fileno()] = str(path)
        return file

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        got = os.preadv(fd, buffers, offset)
        Counted.reads.append((paths[fd], offset, got))
        return got

    monkeypatch.setattr(shards_module, "open", opened, raising=False)
    monkeypatch.setattr(shards_module, "os", SimpleNamespace(preadv=preadv))
    return Counted


@pytest.mark.parametrize("seconds", [None, 0.5], ids=["by clips", "by seconds"])
@pytest.mark.parametrize("workers", [1, 3, 5])
def test_shards_are_read_forward_once_an_epoch(
    folder: Path,
    counted: type[Counted],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float | None,
    workers: int,
) -> None:
    index = ShardIndex.load(folder)
    steps = 2 * LANES * POOL_STEPS
    used = asked = 0
    for worker in range(workers):
        info = type("info", (), {"num_workers": workers})
        monkeypatch.setattr("salsa_dist.data.reading.get_worker_info", lambda info=info: info)
        own = reader(folder, steps, seconds=seconds)
        for t in range(worker, steps, workers):
            clips = own.step(t).clips
            used += len(clips)
            asked += sum(sample.entry.length for _, sample in clips)
        assert not own._held  # all that was read was used
    assert used > 3 * CLIPS  # several epochs
    assert sum(size for _, _, size in counted.reads) <= 1.1 * asked
    if LANES % workers:
        return  # every worker reads its own clips of all pools
    # A pool has a stretch of each reader's shards, in one or two of them, and reads each in one go.
    pools = steps // POOL_STEPS
    assert sum(counted.opens.values()) <= pools * 4 * 2
    assert len(counted.reads) <= sum(counted.opens.values()) * 1.2
    assert sum(counted.opens.values()) / used < 0.12
    assert counted.opens.keys() == {str(folder / s.path) for s in index.shards}


def test_all_ranks_together_read_as_much_as_one(folder: Path, counted: type[Counted]) -> None:
    steps = LANES * POOL_STEPS
    found = []
    for world in (1, 2, 4):
        counted.opens, counted.reads = Counter(), []
        for rank in range(world):
            own = reader(folder, steps, rank, world)
            for t in range(steps):
                own.step(t)
        opens = sum(counted.opens.values())
        found.append((opens, sum(size for _, _, size in counted.reads)))
    assert found[0] == found[1] == found[2]


# Bad samples.


def damage(folder: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy with one of each kind of damage; key -> its kind."""
    import shutil

    out = tmp_path / "damaged"
    shutil.copytree(folder, out)
    index = ShardIndex.load(out)
    bad: dict[str, str] = {}

    def overwrite(shard: Shard, i: int, member: str, content: bytes, kind: str) -> None:
        entry = shard.entries[i]
        path = out / shard.path
        raw = bytearray(path.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(raw[entry.offset : entry.offset + entry.length])) as tar:
            found = tar.getmember(f"{entry.key}.{member}")
        start = entry.offset + found.offset_data
        raw[start : start + found.size] = content.ljust(found.size, b" ")[: found.size]
        path.write_bytes(raw)
        bad[entry.key] = kind

    first = index.shards[0]
    overwrite(first, 3, "flac", b"no audio", "audio")
    overwrite(first, 4, "json", b'{"text": ""}', "transcript")
    overwrite(first, 5, "json", b"{}", "transcript")
    cut = index.shards[1]
    with open(out / cut.path, "r+b") as file:
        file.truncate(cut.entries[-3].offset + 600)
    bad |= {entry.key: "tar" for entry in cut.entries[-3:]}
    gone = index.shards[2]
    (out / gone.path).unlink()
    bad |= {entry.key: "shard" for entry in gone.entries}
    rate = (out / first.path).read_bytes()
    at = rate.index(b"fLaC", first.entries[6].offset) + 18
    header = bytearray(rate)
    header[at : at + 3] = bytes([0x00, 0x3E, 0x80 | (header[at + 2] & 0x0F)])  # 1,000 Hz
    (out / first.path).write_bytes(header)
    bad[first.entries[6].key] = "bounds"
    return out, bad


def used(folder: Path, world: int, steps: int, only: int | None = None) -> tuple[Any, list[Bad]]:
    """Keys of each step, and all that was bad, over all ranks."""
    readers = [reader(folder, steps, rank, world) for rank in range(world)]
    keys, bad = [], []
    for t in range(steps) if only is None else [only]:
        found = [own.step(t) for own in readers]
        assert not any(step.hopeless for step in found)
        keys.append(sorted(clip.key for step in found for clip, _ in step.clips))
        bad += [b for step in found for b in step.bad]
    return keys, bad


def test_bad_samples_are_named_and_replaced_alike_everywhere(folder: Path, tmp_path: Path) -> None:
    damaged, wanted = damage(folder, tmp_path)
    steps = LANES * POOL_STEPS
    keys, bad = used(damaged, 1, steps)
    assert {b.key: b.kind for b in bad} == wanted
    assert all(b.key in b.why and b.shard in b.why for b in bad)
    assert not wanted.keys() & {key for step in keys for key in step}
    assert all(len(step) == 8 for step in keys)
    # The sound ones are used as they would be, and others only in the place of bad ones.
    sound = [sorted(d.entry.key for d in plan(ShardIndex.load(folder)).step(t)) for t in range(steps)]
    for ours, planned in zip(keys, sound, strict=True):
        assert Counter(planned) - Counter(ours) == Counter(k for k in planned if k in wanted)
    for world in (2, 4):
        assert used(damaged, world, 30)[0] == keys[:30]
    assert used(damaged, 2, steps, only=77)[0] == keys[77:78]  # and when a run goes on there


def test_where_nothing_can_be_used_a_sample_is_hopeless(tmp_path: Path) -> None:
    index = write(tmp_path / "shards", 16, 4)
    for shard in index.shards:
        (index.folder / shard.path).write_bytes(b"")
    step = reader(index.folder).step(0)
    assert (step.clips, step.hopeless) == ([], 8)
    assert {b.kind for b in step.bad} == {"tar"}


def test_a_clip_longer_than_its_index_says_is_out_of_bounds(folder: Path) -> None:
    own = reader(folder)
    own.max_seconds = 0.05
    step = own.step(0)
    assert {b.kind for b in step.bad} == {"bounds"}
    assert all(clip.seconds <= 0.05 for clip, _ in step.clips)


def test_clips_keep_their_language(folder: Path) -> None:
    own = reader(folder)
    assert own.plan.step(0)[0].shard.language == "bg"
    assert {clip.language for clip, _ in own.step(0).clips} == {"bg"}


def test_ranks_do_not_change_augmentation(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", 80, 20).folder
    augment = Augment((0.9, 1.1), (10, 30))
    found = []
    for world in (1, 2):
        clips = {}
        for rank in range(world):
            own = reader(folder, 100, rank, world, augment=augment)
            clips |= {(t, c.key): c.audio for t in range(5) for c, _ in own.step(t).clips}
        found.append(clips)
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][k], found[1][k]) for k in found[0])
