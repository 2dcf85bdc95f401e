"""Bad samples in a whole run: replaced and counted; too many of them end it on all ranks together."""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ranks import free_port, run_ranks, start, world
from run_results import events, vectors
from tiny import make_config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from salsa_dist import SteeringVectors, UserError, load_config, train
from salsa_dist.data.index import ShardIndex
from salsa_dist.placement.ranks import Ranks
from salsa_dist.report.one_run import build_report
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.training.batches import StepShare
from salsa_dist.training.from_config import make_batches
from salsa_dist.training.job import Job
from salsa_dist.training.speed import Speed

STEPS = 14


def damaged(tiny_shards: Path, folder: Path, shards: int = 1, bytes_kept: int = 0) -> Path:
    """A copy of which the first Bulgarian shards are cut off."""
    shutil.copytree(tiny_shards, folder)
    for shard in ShardIndex.load(folder).select("train", "bg")[:shards]:
        path = folder / shard.path
        path.write_bytes(path.read_bytes()[:bytes_kept])
    return folder


def config_of(folder: Path, base: Path, shards: Path, **data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    data = {"shards": str(shards), "clips_per_step": 5, "readers": 4, **data}
    training = {"steps": STEPS, "lr": 0.02, "micro_batch": 2}
    return make_config(folder, base, shards, data=data, training=training)


def ranks(config: Path, count: int) -> "subprocess.CompletedProcess[str]":
    return run_ranks(count, "-m", "salsa_dist", "train", config, folder=config.parent, timeout_s=300)


def ranks_left_alone(config: Path, count: int) -> list[tuple[int, str]]:
    """Status and errors of ranks that nobody ends, as torchrun does once the first has failed."""
    port, logs = free_port(), [config.parent / f"alone-{rank}" for rank in range(count)]
    started = [
        start("-m", "salsa_dist", "train", config, env={**os.environ, **world(count, port, r)}, out=log)
        for r, log in enumerate(logs)
    ]
    statuses = [process.wait(timeout=300) for process in started]
    return [(status, log.read_text()) for status, log in zip(statuses, logs, strict=True)]


def test_two_ranks_replace_as_one_does_and_stop_together(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    shards = damaged(tiny_shards, tmp_path / "shards", bytes_kept=600)
    alone = config_of(tmp_path / "alone", tiny_base, shards)
    assert train(load_config(alone)).finished
    both = config_of(tmp_path / "both", tiny_base, shards)
    assert ranks(both, 2).returncode == 0
    wanted, found = vectors(tmp_path / "alone/run"), vectors(tmp_path / "both/run")
    for name, vector in wanted.items():
        assert (found[name] - vector).norm() / vector.norm() < 1e-5, name
    lists = [
        sorted(s["key"] for e in events(tmp_path / run / "run") for s in e.get("samples", []))
        for run in ("alone", "both")
    ]
    assert lists[0] == lists[1]
    assert len(lists[0]) == len(set(lists[0])) > 3  # each named once
    # Only the second of two ranks reads the first shard's neighbour; the other must not wait for it.
    index = ShardIndex.load(tiny_shards)
    (shards / index.select("train", "bg")[1].path).unlink()
    strict = config_of(tmp_path / "strict", tiny_base, shards, max_bad=len(lists[0]))
    said = f"more than data.max_bad, {len(lists[0])}"
    for status, error in ranks_left_alone(strict, 2):
        assert status == 2
        assert said in error  # each rank says so itself
    found_bad = [e["so_far"] for e in events(tmp_path / "strict/run") if e["event"] == "bad_samples"]
    assert found_bad[-1].keys() == {"tar", "shard"}
    assert not (tmp_path / "strict/run/adapters").exists()


def peak_of(flops: float, made: Callable[..., None]) -> Callable[..., None]:
    def init(self: Speed, job: Any) -> None:
        made(self, job)
        self._peak = flops

    return init


def test_the_report_counts_them(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = damaged(tiny_shards, tmp_path / "shards")
    # The CPU as a GPU of a known peak.
    monkeypatch.setattr(Speed, "__init__", peak_of(1e9, Speed.__init__))
    counter, passes = FlopCounterMode(display=False), Job.forward_backward

    def counted(job: Job, step: int, share: StepShare) -> tuple[Tensor, Tensor]:
        with counter if step == STEPS - 1 else nullcontext():
            return passes(job, step, share)

    monkeypatch.setattr(Job, "forward_backward", counted)
    # PyTorch counts no fused attention on the CPU.
    eager = ["base.attn_implementation=eager"]
    train(load_config(config_of(tmp_path / "a", tiny_base, shards), eager))
    report = build_report(tmp_path / "a/run")
    count = report["training"]["bad_samples"]["tar"]
    assert 3 < count <= 6
    assert 0 < report["training"]["padding"] < 0.5
    assert 0 < report["training"]["data_wait"] < 1  # no workers: all reading is waited for
    training = report["training"]
    own = [e for e in events(tmp_path / "a/run") if e["event"] == "step"]
    heard = sum(e["audio_seconds"] for e in own)
    assert training["audio_per_second"] == pytest.approx(heard / training["seconds"])
    tokens = sum(e["tokens_per_second"] * e["seconds"] for e in own)
    assert 2 < tokens / sum(e["clips"] for e in own) < 40  # prompt and transcript of a clip
    assert training["peak_memory"] == own[-1]["peak_memory"] > 50e6
    # MFU counts no padding of transcripts; else what PyTorch counts.
    made = own[-1]["mfu"] * own[-1]["seconds"] * 1e9
    assert made == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert any(f"{count} samples could not be used ({count} tar)" in note for note in report["notes"])


def test_a_run_without_any_sound_sample_stops(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    shards = damaged(tiny_shards, tmp_path / "shards", shards=4)
    config = config_of(tmp_path / "a", tiny_base, shards, max_bad=10_000)
    with pytest.raises(UserError, match="5 clips can't be used, nor any of 16 others"):
        train(load_config(config))


def test_a_clip_that_the_base_refuses_is_a_bad_sample(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    llm = load_speech_llm(tiny_base)
    llm.family.max_tokens = 20
    config = load_config(config_of(tmp_path / "a", tiny_base, tiny_shards))
    index = ShardIndex.load(tiny_shards)
    made = make_batches(config, index, llm, Ranks(0, 1, 0, 1, torch.device("cpu")))
    shares = [made[t] for t in range(4)]
    refused = [bad for share in shares for bad in share.bad]
    assert {bad.kind for bad in refused} == {"refused"}
    assert all("the base has 20" in bad.why for bad in refused)
    used = {key for share in shares for batch in share.batches for key in batch.keys}
    unused = {key for t in range(4) for key in made.keys(t)} - used
    assert unused
    assert unused <= {bad.key for bad in refused}
    assert [sum(len(b.keys) for b in share.batches) for share in shares] == [10] * 4


def test_a_packed_run_of_mixed_languages_by_seconds(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Every adapter is in every step, with its share of audio, and its file says what it used."""
    tree = yaml.safe_load(config_of(tmp_path / "a", tiny_base, tiny_shards).read_text())
    del tree["data"]["clips_per_step"]
    tree["data"]["seconds_per_step"] = 6.0
    tree["adapters"] = [
        {"name": "both", "language": ["el", "bg"], "mix": {"weights": {"bg": 3, "el": 1}}},
        {"name": "el", "language": "el"},
    ]
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = train(load_config(path))
    steps = [e for e in events(tmp_path / "a/run") if e["event"] == "step"]
    assert all(e["adapters"].keys() == {"both", "el"} for e in steps)
    assert all(e["adapters"][name]["labels"] > 0 for e in steps for name in ("both", "el"))
    assert sum(e["audio_seconds"] for e in steps) / STEPS == pytest.approx(12, rel=0.15)
    shares = {e["adapter"]: e["languages"] for e in events(tmp_path / "a/run") if e["event"] == "data"}
    assert shares == {"both": {"bg": 0.75, "el": 0.25}, "el": {"el": 1.0}}
    both, el = (SteeringVectors.load(p) for p in done.adapters)
    assert both.data is not None
    assert (both.language, both.data.languages) == ("", ["bg", "el"])
    assert el.language == "el"
