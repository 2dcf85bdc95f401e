"""Every rank's share of a step, and what all shares make together."""

import math
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conformance import clips

from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.joining import PAUSE_S
from salsa_dist.data.sampling import AdapterPlan
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.training.batches import AdapterClips, StepBatches, StepShare
from salsa_dist.training.opening import _tell_clips
from salsa_dist.training.workers import ReadAhead


@pytest.fixture(scope="module")
def llm(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


def batches(
    llm: SpeechLLM,
    folder: Path,
    rank: int,
    world: int,
    micro_batch: int = 16,
    readers: int = 4,
    *,
    join: int = 1,
    clips: int = 5,
) -> StepBatches:
    index = ShardIndex.load(folder)
    jobs = [
        AdapterClips(
            AdapterPlan(index.select("train", lang), clips, readers, 0, 2.0), steps, (lang,), join=join
        )
        for lang, steps in (("bg", 4), ("el", 2))
    ]
    return StepBatches(jobs, folder, llm.family, rank, world, micro_batch)


def contents(parts: list[AdapterBatch]) -> list[tuple[str, int]]:
    return sorted(
        (key, int(row))
        for b in parts
        for key, row in zip(b.keys, b.rows["encoder"], strict=True)
        if key
    )


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_global_batch_does_not_depend_on_ranks(
    llm: SpeechLLM, tiny_shards: Path, world: int
) -> None:
    for step in range(4):
        alone = contents(batches(llm, tiny_shards, 0, 1)[step].batches)
        shared = [batches(llm, tiny_shards, rank, world, 2)[step].batches for rank in range(world)]
        assert sorted(c for parts in shared for c in contents(parts)) == alone
        assert len(alone) == (10 if step < 2 else 5)  # el has two steps
        # A rank has the samples of its own readers, and no other's; the second adapter's begin at
        # the second rank.
        readers = [{int(k.split("-")[1]) // 6 % 4 + row for k, row in contents(p)} for p in shared]
        assert all(r % world == rank for rank, own in enumerate(readers) for r in own)
        assert all(readers) or len(alone) < world
        # Every rank makes the same number of passes, be it with a silent clip.
        assert len({len(parts) for parts in shared}) == 1


def parts(share: StepShare) -> list[list[tuple[str, int]]]:
    return [contents([batch]) for batch in share.batches]


def test_workers_give_the_same_batches_in_order(llm: Any, tiny_shards: Path) -> None:
    mine, ahead = batches(llm, tiny_shards, 1, 2), batches(llm, tiny_shards, 1, 2)
    reading = ReadAhead(ahead, 2)

    def processes() -> set[int | None]:
        return {child.pid for child in multiprocessing.active_children()}

    before = processes()
    assert [contents(b.batches) for b in reading.shares(1)] == [
        contents(mine[t].batches) for t in range(1, 4)
    ]
    workers = processes() - before
    assert len(workers) == 2
    # An adapter stops and passes get smaller: the same processes drop what they have read ahead.
    next(reading.shares(0))
    for own in (mine, ahead):
        own.stop([0])
        own.limit_pass(1)
    assert [parts(b) for b in reading.shares(1, 3)] == [parts(mine[t]) for t in range(1, 3)]
    assert processes() - before == workers
    # What takes long to import is there before a worker begins.
    there = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    assert {type(llm.family).__module__, type(llm.family.tokenizer).__module__} <= set(there)


def test_a_killed_worker_is_one_line(llm: Any, tiny_shards: Path) -> None:
    reading = ReadAhead(batches(llm, tiny_shards, 0, 2), 2)
    before = set(multiprocessing.active_children())
    shares = reading.shares(0)
    next(shares)
    workers = set(multiprocessing.active_children()) - before
    for worker in workers:
        worker.kill()
    with pytest.raises(UserError, match=r"reads clips ahead was killed \(SIGKILL, process \d+"):
        list(shares)


def test_a_worker_ends_with_its_rank() -> None:
    rank = subprocess.Popen(["sleep", "600"])
    text = f"import time; from salsa_dist.training import workers; workers._end_with({rank.pid})"
    worker = subprocess.Popen(
        [sys.executable, "-c", f"{text}; print(1, flush=True); time.sleep(600)"], stdout=subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(3)
        rank.kill()
        assert worker.wait(30) == 1
    finally:
        rank.kill()
        worker.kill()
        rank.wait()


def test_features_made_clip_by_clip_are_those_of_a_batch(llm: Any) -> None:
    audio = [clip.audio for clip in clips(llm)]
    whole = llm.family.features(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    assert torch.equal(llm.family.training_batch(clips(llm)).inputs["input_features"], whole)


def test_a_silent_clip_has_no_labels(llm: SpeechLLM, tiny_shards: Path) -> None:
    parts = [p for s in range(4) for p in batches(llm, tiny_shards, 3, 4, 1)[s].batches]
    silent = [p for p in parts if p.keys == [""]]
    assert silent
    assert all(len(p.labels) == 0 and int(p.rows["encoder"][0]) == -1 for p in silent)


@pytest.mark.parametrize("unit", [None, 0.5, "window"])
def test_a_pass_has_no_more_seconds_than_it_may(
    llm: SpeechLLM, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, unit: float | str | None
) -> None:
    padded_to_s = llm.window_s if unit == "window" else unit
    monkeypatch.setattr(llm.family, "padded_to_s", padded_to_s)
    most = 4.5

    def cost(seconds: float) -> float:
        return seconds if padded_to_s is None else math.ceil(seconds / padded_to_s) * padded_to_s

    for step in range(4):
        alone = contents(batches(llm, tiny_shards, 0, 1, clips=20)[step].batches)
        ranks = [batches(llm, tiny_shards, rank, 2, clips=20) for rank in range(2)]
        for own in ranks:
            own.limits = replace(own.limits, seconds=most)
        shared = [own[step] for own in ranks]
        assert len({len(share.batches) for share in shared}) == 1
        assert len(shared[0].batches) == ranks[0].passes(step) == ranks[1].passes(step)
        clips = [contents([part]) for share in shared for part in share.batches]
        assert sorted(clip for own in clips for clip in own) == alone
        if unit == "window":
            assert max(map(len, clips)) == int(most // llm.window_s)
        lengths = {
            entry.key: entry.seconds
            for shard in ShardIndex.load(tiny_shards).shards
            for entry in shard.entries
        }
        for own in clips:
            own_cost = len(own) * max((cost(lengths[k]) for k, _ in own), default=0)
            assert own_cost <= most + 1e-6
        # Few of short clips would be no use: the limit is made use of.
        assert max(map(len, clips)) >= 2


@pytest.mark.parametrize("world", [5, 8, 32])
def test_more_ranks_than_readers_share_their_clips(
    llm: SpeechLLM, tiny_shards: Path, world: int
) -> None:
    for step in range(4):
        alone = contents(batches(llm, tiny_shards, 0, 1, clips=16)[step].batches)
        shared = [
            contents(batches(llm, tiny_shards, rank, world, clips=16)[step].batches)
            for rank in range(world)
        ]
        assert sorted(clip for own in shared for clip in own) == alone
        sizes = sorted(len(own) for own in shared)
        assert sizes[-1] - sizes[0] <= 1, "a rank has much more to do than another"


def test_adapters_begin_at_other_ranks(llm: SpeechLLM, tiny_shards: Path) -> None:
    """So that no rank has the surplus of all adapters, or nothing of any."""
    for world, sizes in ((3, [12, 12, 8]), (32, [1] * 32)):
        own = [batches(llm, tiny_shards, rank, world, clips=16)[0] for rank in range(world)]
        assert [len(contents(share.batches)) for share in own] == sizes


def test_a_step_with_fewer_clips_than_ranks_is_said(llm: SpeechLLM, tiny_shards: Path) -> None:
    mine = batches(llm, tiny_shards, 0, 32, clips=16)
    assert [mine.idle(step) for step in range(4)] == [0, 0, 16, 16]  # from step 2 on, one adapter
    said: list[str] = []
    session: Any = SimpleNamespace(
        ranks=SimpleNamespace(world_size=32),
        events=SimpleNamespace(write=lambda *_, **__: None),
        say=said.append,
    )
    for first in (0, 3):
        _tell_clips(session, ["bg", "el"], mine, first)
    assert said == [
        "step 4 has clips for 16 of 32 ranks, the others wait: more clips per step cost no more time"
    ]


def test_workers_read_what_a_rank_of_many_needs(llm: SpeechLLM, tiny_shards: Path) -> None:
    mine = batches(llm, tiny_shards, 5, 8, clips=16)
    wanted = [contents(mine[t].batches) for t in range(1, 4)]
    assert any(wanted)
    assert [contents(b.batches) for b in ReadAhead(mine, 2).shares(1)] == wanted


def test_joined_clips_need_a_reader_a_rank(llm: SpeechLLM, tiny_shards: Path) -> None:
    with pytest.raises(UserError, match=r"data.join_clips: 5 ranks share 4 readers; set data.readers"):
        batches(llm, tiny_shards, 0, 5, join=2)


def test_labels_are_the_transcripts(llm: SpeechLLM, tiny_shards: Path) -> None:
    (batch,) = batches(llm, tiny_shards, 0, 1)[0].batches
    decoded = llm.family.tokenizer.decode(batch.labels, skip_special_tokens=False)
    texts = [t.strip() for t in decoded.split("<|endoftext|>") if t]
    assert len(texts) == 10
    assert all(
        set(t.split()) <= {"vuk", "lisa", "mechka", "zaek", "riba", "kon", "ptica", "kotka"}
        for t in texts
    )
    assert batch.label_positions.sum() == len(batch.labels) == len(batch.label_rows)
    # The position before each label holds the token before it.
    ids = batch.inputs["decoder_input_ids"][batch.label_positions]
    prompt_end = llm.family.prompt("bg")[-1]
    assert (ids == prompt_end).sum() == 10


@pytest.mark.parametrize("world", [2, 4])
def test_joined_clips_are_the_same_windows_on_any_number_of_ranks(
    llm: SpeechLLM, tiny_shards: Path, world: int
) -> None:
    sizes = set()
    for step in range(4):
        whole = batches(llm, tiny_shards, 0, 1, join=3, clips=20)[step]
        alone = contents(whole.batches)
        shared = [batches(llm, tiny_shards, r, world, 2, join=3, clips=20)[step] for r in range(world)]
        assert sorted(c for s in shared for c in contents(s.batches)) == alone
        assert len({len(s.batches) for s in shared}) == 1
        assert sum(s.seconds for s in shared) == pytest.approx(whole.seconds)
        windows = [key.split(" + ") for key, _ in alone]
        sizes |= {len(window) for window in windows}
        plain = contents(batches(llm, tiny_shards, 0, 1, 99, clips=20)[step].batches)
        assert sorted(k for window in windows for k in window) == sorted(k for k, _ in plain)
    assert sizes >= {1, 2}


def test_joined_clips_are_encoded_and_written_in_one_order(llm: SpeechLLM, tiny_shards: Path) -> None:
    plain, together = (batches(llm, tiny_shards, 0, 1, 99, join=join, clips=20)[0] for join in (1, 3))
    texts: dict[tuple[str, int], str] = {}
    for share in (plain, together):
        (batch,) = share.batches
        decoded = llm.family.tokenizer.decode(batch.labels, skip_special_tokens=False)
        said = [t.strip() for t in decoded.split("<|endoftext|>") if t]
        rows = batch.rows["encoder"].tolist()
        for key, row, text in zip(batch.keys, rows, said, strict=True):
            parts = key.split(" + ")
            if len(parts) > 1:
                assert text == " ".join(texts[k, row] for k in parts)
            texts[key, row] = text
    pauses = sum(key.count(" + ") for key in together.batches[0].keys)
    assert pauses
    assert together.seconds == pytest.approx(plain.seconds + PAUSE_S * pauses)


def test_what_the_base_refuses_joined_is_used_clip_by_clip(
    llm: SpeechLLM, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = batches(llm, tiny_shards, 0, 1, 99, clips=20)[0].batches
    plain = contents(alone)
    monkeypatch.setattr(llm.family, "max_tokens", alone[0].inputs["decoder_input_ids"].shape[1])
    share = batches(llm, tiny_shards, 0, 1, 99, join=3, clips=20)[0]
    assert not share.bad
    assert sorted((k, row) for key, row in contents(share.batches) for k in key.split(" + ")) == plain
