"""A slow run moves all the time: with each pass, each token, each clip, each try of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import make_config

from salsa_dist.config import load_config
from salsa_dist.data import last_read, patience
from salsa_dist.data.cached_shard import CachedShard, locked
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import read_clip
from salsa_dist.evaluation.run import evaluate
from salsa_dist.run.watchdog import Watchdog
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.training.batches import AdapterClips, AdapterPlan, StepBatches
from salsa_dist.training.loop import train
from salsa_dist.training.workers import ReadAhead


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each phase of the run, and "moved" for each move within it."""
    seen: list[str] = []
    at, moved = Watchdog.at, Watchdog.moved

    def noted_at(self: Watchdog, step: int | None, phase: str, **more: Any) -> None:
        seen.append(phase)
        at(self, step, phase, **more)

    def noted_moved(self: Watchdog) -> None:
        seen.append("moved")
        moved(self)

    monkeypatch.setattr(Watchdog, "at", noted_at)
    monkeypatch.setattr(Watchdog, "moved", noted_moved)
    return seen


def within(moves: list[str], phase: str) -> int:
    """Moves within the first stay in `phase`."""
    begun = moves.index(phase) + 1
    following = (i for i, what in enumerate(moves) if i >= begun and what != "moved")
    return next(following) - begun


def test_each_pass_of_a_step_moves_forward_and_backward(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, moves: list[str]
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    one_by_one = ["training.micro_batch=1", "training.share_prefix=false", "training.steps=1"]
    train(load_config(config, one_by_one))
    passes = 5 * 2  # clips of two adapters
    assert within(moves, "forward and backward") == 2 * passes


def test_each_token_of_a_batch_moves(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, moves: list[str]
) -> None:
    config = make_config(tmp_path, tiny_base, tiny_shards)
    tokens = 8
    words = ["method.kind=zero-shot", f"evaluation.max_new_tokens={tokens}"]
    evaluate(load_config(config, words))
    phase = next(what for what in moves if what.startswith("transcribing"))
    assert within(moves, phase) >= tokens - 1


def batches(base: Path, shards: Path) -> StepBatches:
    index = ShardIndex.load(shards)
    plan = AdapterPlan(index.select("train", "bg"), 5, 4, 0, 2.0)
    return StepBatches(
        [AdapterClips(plan, 4, ("bg",))], shards, load_speech_llm(base).family, 0, 1, micro_batch=1
    )


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry per call of `last_read.now` in this process."""
    calls: list[None] = []
    monkeypatch.setattr(last_read, "now", lambda: calls.append(None))
    return calls


def test_each_clip_that_is_read_is_noted(tiny_base: Path, tiny_shards: Path, noted: list[None]) -> None:
    own = batches(tiny_base, tiny_shards)
    shard = ShardIndex.load(tiny_shards).shards[0]
    read_clip(tiny_shards, shard, shard.entries[0])
    assert len(noted) == 1
    noted.clear()
    share = own[0]
    assert share.clips == len(share.batches) == 5
    # As bytes, those of the step's pool at once; decoded; and as features of a pass.
    assert len(noted) >= 3 * 5


def test_what_workers_read_is_noted_for_their_rank(tiny_base: Path, tiny_shards: Path) -> None:
    reading = ReadAhead(batches(tiny_base, tiny_shards), 1)
    before = last_read.at()
    assert len(list(reading.shares(0))) == 4
    assert last_read.at() > before


def test_each_try_of_a_store_is_noted_up_to_its_end(noted: list[None]) -> None:
    answers = iter([OSError("503"), OSError("503"), b"bytes"])

    def read() -> bytes:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert patience.tried("s3://x/a.tar", 60.0, read) == b"bytes"
    assert len(noted) == 2

    def never() -> bytes:
        raise OSError("503")

    with pytest.raises(OSError, match="503"):
        patience.tried("s3://x/a.tar", 0.0, never)  # given up
    assert len(noted) == 2


def test_waiting_for_what_another_process_fetches_is_noted(noted: list[None]) -> None:
    file = CachedShard.in_memory(1000, "etag", False)
    with locked(file, 0, 1, 10.0):
        assert not noted
        with locked(file, 0, 1, 0.05):
            assert noted
