"""A pass that does not fit the device's memory, with an error of torch's own raised on purpose: here is
no GPU whose memory could be full."""

import json
from pathlib import Path
from typing import Any

import out_of_memory_ranks
import pytest
import torch
from ranks import run_ranks
from run_results import events, vectors
from tiny import make_config

from salsa_dist import UserError, evaluate, load_config, train
from salsa_dist.data.index import ShardIndex
from salsa_dist.placement import choose, decode
from salsa_dist.planner.plan_of_run import long_clip, plan_of
from salsa_dist.planner.step_work import USABLE, Machines
from salsa_dist.run import session
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.settled import settled
from salsa_dist.speech_llms.batch import AdapterBatch
from salsa_dist.training import dev_loss, job, longest_pass, loop
from salsa_dist.training.batches import StepBatches

TRAINING = {"steps": 4, "lr": 0.02, "micro_batch": 6}
DATA = {"clips_per_step": 6}


def config_of(folder: Path, base: Path, shards: Path, **sections: Any) -> Path:
    folder.mkdir()
    sections = {"training": TRAINING, "data": {"shards": str(shards), **DATA}, **sections}
    return make_config(folder, base, shards, **sections)


def same(found: Path, wanted: Path) -> None:
    expected = vectors(wanted.parent / "run")
    for name, vector in vectors(found.parent / "run").items():
        assert vector.norm() > 0.01
        assert (vector - expected[name]).norm() / expected[name].norm() < 1e-5, name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Path:
    """The config of a run whose passes all fit."""
    config = config_of(tmp_path_factory.mktemp("plain") / "a", tiny_base, tiny_shards)
    assert train(load_config(config)).finished
    return config


@pytest.mark.parametrize("workers", [0, 1])
def test_smaller_passes_learn_the_same(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, plain: Path, workers: int
) -> None:
    data = {"shards": str(tiny_shards), **DATA, "workers": workers}
    config = config_of(tmp_path / "a", tiny_base, tiny_shards, data=data)
    with out_of_memory_ranks.room_for(clips=3) as passes:
        assert train(load_config(config)).finished
    same(config, plain)
    found = [
        (e["step"], e["clips"], e["limit"]) for e in events(config.parent / "run", "out_of_memory")
    ]
    assert found == [(0, 6, 3)]  # once: what workers had read ahead is not tried
    assert max(passes[1:]) <= 3


def test_cublas_without_memory_halves_a_pass_too(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Torch's allocator may have taken all when the thread of the first backward pass opens it."""
    training = {**TRAINING, "steps": 1}
    config = config_of(tmp_path / "a", tiny_base, tiny_shards, training=training)
    said = "CUDA error: {} when calling `cublasCreate(handle)`"
    full = RuntimeError(said.format("CUBLAS_STATUS_ALLOC_FAILED"))
    with out_of_memory_ranks.room_for(clips=3, error=full):
        assert train(load_config(config)).finished
    assert [e["limit"] for e in events(config.parent / "run", "out_of_memory")] == [3]
    config = config_of(tmp_path / "b", tiny_base, tiny_shards, training=training)
    other = RuntimeError(said.format("CUBLAS_STATUS_EXECUTION_FAILED"))
    with (
        out_of_memory_ranks.room_for(clips=3, error=other),
        pytest.raises(RuntimeError, match="EXECUTION"),
    ):
        train(load_config(config))


def test_auto_takes_the_largest_passes_that_the_plan_has_room_for(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_of(
        tmp_path / "a", tiny_base, tiny_shards, training={**TRAINING, "micro_batch": "auto"}
    )
    config = load_config(path)
    length = long_clip(ShardIndex.load(tiny_shards), config)
    two = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": 2})})
    row = plan_of(two, Machines(1, 1, 1e9), long_s=length).row("replicate")
    assert row is not None
    room = Machines(1, 1, row.device_bytes / USABLE + 1)
    assert plan_of(config, room, long_s=length).work.micro_batch == 2
    assert (
        plan_of(config, Machines(1, 1, 1e12), long_s=length).work.micro_batch == 16
    )  # 12 clips a step
    monkeypatch.setattr(choose, "this_job", lambda ranks: room)
    with out_of_memory_ranks.room_for(clips=100) as passes:
        assert train(config).finished
    assert max(passes) == 2
    same(path, plain)
    # The next start keeps it, whatever room there is.
    assert settled(config, "cpu").training.micro_batch == 2


def test_the_longest_clips_come_first_and_change_nothing(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "shows_at_once", lambda device: True)
    config = config_of(tmp_path / "a", tiny_base, tiny_shards)
    tried: list[tuple[int, float]] = []
    whole = longest_pass.longest_pass

    def seen(batches: StepBatches, step: int) -> AdapterBatch | None:
        longest = max(e.seconds for own in batches.adapters for _, e in own.plan.longest(1))
        batch = whole(batches, step)
        assert batch is not None
        tried.append((len(batch.keys), longest))
        return batch

    monkeypatch.setattr(job, "longest_pass", seen)
    with out_of_memory_ranks.room_for(clips=3) as passes:
        assert train(load_config(config)).finished
    assert [clips for clips, _ in tried] == [6, 3]
    index = ShardIndex.load(tiny_shards)
    lengths = [e.seconds for c in ("bg", "el") for s in index.select("train", c) for e in s.entries]
    assert tried[0][1] == max(lengths)
    assert passes[:2] == [6, 3]
    assert max(passes[1:]) <= 3  # no step is out of memory any more
    found = [
        (e["step"], e["clips"], e["limit"]) for e in events(config.parent / "run", "out_of_memory")
    ]
    assert found == [(0, 6, 3)]
    same(config, plain)


def test_it_is_kept_for_the_next_start(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, plain: Path
) -> None:
    config = config_of(tmp_path / "a", tiny_base, tiny_shards)
    (tmp_path / "a/run").mkdir()
    (tmp_path / "a/run/pass_limit.json").write_text('{"schema": "salsa-dist/pass-limit/1", "clips": 2}')
    with out_of_memory_ranks.room_for(clips=2) as passes:
        assert train(load_config(config)).finished
    assert max(passes) == 2
    same(config, plain)


def test_one_clip_too_large_is_the_users_to_solve(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    config = config_of(tmp_path / "a", tiny_base, tiny_shards)
    with (
        out_of_memory_ranks.room_for(clips=0),
        pytest.raises(UserError, match=r"step 1, rank 0: out of memory with one clip .*checkpointing"),
    ):
        train(load_config(config))
    assert not (tmp_path / "a/run/adapters").exists()


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize(
    ("broken", "asked", "said"),
    [
        ((session, "load_base"), [], "loading the base, rank 0: .*placement.kind"),
        ((dev_loss, "token_losses"), [], "measuring on dev clips, rank 0: .*training.micro_batch"),
        (
            (decode, "answer"),
            ["method.kind=zero-shot"],
            "transcribing at the 2 s window, rank 0: .*evaluation.batch lower.*evaluation.placement",
        ),
    ],
)
def test_memory_that_is_full_elsewhere_is_one_line_too(
    tmp_path: Path,
    tiny_base: Path,
    tiny_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[Any, str],
    asked: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(*broken, full)
    training = {"steps": 1, "dev_clips": 1}
    config = load_config(config_of(tmp_path / "a", tiny_base, tiny_shards, training=training), asked)
    with pytest.raises(UserError, match=said) as caught:
        evaluate(config) if asked else train(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"schema": "salsa-dist/pass-limit/1", "clips": 0}', "{"])
def test_a_damaged_limit_is_refused(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, text: str
) -> None:
    config = config_of(tmp_path / "a", tiny_base, tiny_shards)
    (tmp_path / "a/run").mkdir()
    (tmp_path / "a/run/pass_limit.json").write_text(text)
    with pytest.raises(UserError, match=r"pass_limit.json is damaged .*: remove it"):
        train(load_config(config))


def test_ranks_that_share_a_base_start_again_with_less(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, plain: Path
) -> None:
    config = config_of(tmp_path / "a", tiny_base, tiny_shards, placement={"kind": "full"})
    program, told = out_of_memory_ranks.__file__, {"SALSA_FAILURE_FILE": str(tmp_path / "failure")}
    first = run_ranks(2, program, config, folder=tmp_path, env=told)
    assert first.returncode != 0
    limit = RunFolder(tmp_path / "a/run").pass_limit
    assert json.loads(limit.read_text())["clips"] == 3
    found = json.loads((tmp_path / "failure1").read_text())
    assert found["text"].startswith("step 1, rank 1: out of memory with 6 clips in a pass")
    assert found["user_error"] is False  # a launcher starts it again
    second = run_ranks(2, program, config, folder=tmp_path, env=told)
    assert second.returncode == 0, second.stderr[-2000:]
    same(config, plain)
