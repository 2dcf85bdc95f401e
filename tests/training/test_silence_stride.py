"""How much trailing padding each adapter keeps, measured (`training.silence_stride: auto`)."""

import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from run_results import events
from tiny import make_config
from torch.nn.functional import cosine_similarity

from salsa_dist import load_config, train
from salsa_dist.config import Config
from salsa_dist.config.fingerprint import digest
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import read_clip
from salsa_dist.data.sampling import AdapterPlan
from salsa_dist.errors import UserError
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.ranks import join
from salsa_dist.run.settled import settled
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training import silence_stride
from salsa_dist.training.from_config import make_bank
from salsa_dist.training.loss import token_losses
from salsa_dist.training.silence_stride import SilenceStrides

ADAPTERS = [
    {"name": "bg", "language": "bg", "sites": "llm"},
    {"name": "el", "language": "el", "rule": "add"},
    {"name": "again", "language": "el", "rule": "add", "lr": 0.1},
]
TRAINING: dict[str, Any] = {"steps": 2, "lr": 0.02, "save_every_s": 0, "silence_stride": "auto"}


def expected_cosines(config: Config, languages: list[str], shards: Path) -> list[dict[int, float]]:
    """Median cosine per stride, of each of the first adapters, by bases that are loaded with it."""
    gradients: dict[tuple[int, int], list[torch.Tensor]] = {}
    for stride in (1, *silence_stride.STRIDES):
        llm = load_speech_llm(config.base.name, silence_stride=stride)
        llm.family.silence_ends_s = llm.window_s / 60  # type: ignore[attr-defined]
        bank = make_bank(config, llm, torch.device("cpu"))
        with join() as ranks, FrozenBase(llm, bank, ranks, config.placement) as base:
            for row, language in enumerate(languages):
                plan = AdapterPlan(
                    ShardIndex.load(shards).select("train", language), 5, 4, 0, llm.window_s
                )
                first = [*plan.step(0), *plan.step(1)][: silence_stride.CLIPS]
                clips = [read_clip(shards, sample.shard, sample.entry) for sample in first]
                for clip in (
                    own for own in clips if own.seconds + 0.5 + llm.window_s / 30 < llm.window_s
                ):
                    for vector in bank.vectors.values():
                        vector.grad = None
                    batch = llm.family.training_batch([replace(clip, row=row)])
                    token_losses(base, batch).sum().backward()
                    grads = [bank.vectors[site].grad for site in bank.specs[row].sites]
                    found = torch.cat([g[row] for g in grads if g is not None])
                    gradients.setdefault((row, stride), []).append(found)

    def median(row: int, stride: int) -> float:
        pairs = zip(gradients[row, 1], gradients[row, stride], strict=True)
        return statistics.median(cosine_similarity(a.double(), b.double(), dim=0) for a, b in pairs)

    return [
        {stride: float(median(row, stride)) for stride in silence_stride.STRIDES}
        for row in range(len(languages))
    ]


def test_each_adapter_takes_the_largest_stride_whose_gradients_are_near(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured on its own first clips, told, written into the adapter, and kept in the state."""
    path = make_config(tmp_path, tiny_base, tiny_shards, training=TRAINING, adapters=ADAPTERS)
    config = load_config(path, ["placement.kind=replicate"])
    cosines = expected_cosines(config, ["bg", "el"], tiny_shards)
    # Between what the two have at 16, so that they take different strides.
    monkeypatch.setattr(silence_stride, "COSINE", (cosines[0][16] + cosines[1][16]) / 2)
    folders = train(config).adapters
    [event] = events(config.run, "silence_stride")
    made = [SteeringVectors.load(folder).training for folder in folders]
    for own, name, facts in zip([*cosines, cosines[1]], ("bg", "el", "again"), made, strict=True):
        found = {int(n): value for n, value in event["cosines"][name].items()}
        assert found == pytest.approx(own, abs=6e-5)
        stride = max((n for n, c in own.items() if c >= silence_stride.COSINE), default=1)
        assert facts is not None
        assert facts.silence_stride == event["adapters"][name] == stride
        assert facts.silence_ends_s == (facts.window_s / 60 if stride > 1 else 0.0)
    assert event["adapters"]["bg"] != event["adapters"]["el"]
    # Going on measures no more: whatever would be found now, strides are those of the state.
    monkeypatch.setattr(silence_stride, "COSINE", 2.0)
    again = train(config).adapters
    assert [SteeringVectors.load(folder).training for folder in again] == made
    assert len(events(config.run, "silence_stride")) == 1


def test_ranks_with_whole_copies_divide_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip is measured, and all ranks make as many passes."""
    clips = [replace(silent_clip("bg"), key=str(n)) for n in range(silence_stride.CLIPS)]
    seen: list[tuple[int, str]] = []

    def cosines(own: object, base: Any, clip: Clip, moved: object) -> list[float]:
        seen.append((base.ranks.rank, clip.key))
        return [0.999] * 4

    monkeypatch.setattr(SilenceStrides, "_cosines", cosines)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *args, **options: None)
    batches: Any = SimpleNamespace(draws=lambda: [0], first_clips=lambda draw, count: clips)
    for rank in range(3):
        adapters: Any = [SimpleNamespace(name="bg", start_from=None)]
        family: Any = SimpleNamespace(has_padding=lambda clip: True)
        strides = SilenceStrides(family, adapters)
        base: Any = SimpleNamespace(
            bank=SimpleNamespace(specs=[SimpleNamespace(sites=(), rule="salsa")]),
            ranks=SimpleNamespace(world_size=3, rank=rank, device=torch.device("cpu")),
            size=1,
        )
        strides.measure(base, batches, lambda: None)
    assert sorted({key for _, key in seen}) == [clip.key for clip in clips]
    assert Counter(rank for rank, _ in seen) == {0: 3, 1: 3, 2: 3}


def test_clips_that_fill_the_window_and_runs_that_keep_it_whole_measure_nothing(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    path = make_config(tmp_path, tiny_base, tiny_shards, training={**TRAINING, "steps": 1})
    full = load_config(path, ["training.window_s=0.9", "placement.kind=replicate"])
    train(full)  # of the clips that fit, each ends less than half a second before the window
    [event] = events(full.run, "silence_stride")
    assert event["adapters"] == {"bg": 1, "el": 1}
    assert event["cosines"] == {}
    halved = [
        "training.dev_clips=2",
        'training.halving={"rungs": [2], "keep": 0.5}',
        "training.steps=4",
    ]
    for whole in (["method.kind=lora"], halved):
        config = load_config(path, whole)
        assert config.thinning == 1
        one = load_config(path, [*whole, "training.silence_stride=1"])
        assert digest(settled(config, "cpu"), "vectors") == digest(settled(one, "cpu"), "vectors")


def test_with_a_prefix_cache_windows_are_whole_and_stay_so(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that never decide may change when a run resumes, and its strides stay."""
    monkeypatch.setattr(silence_stride, "COSINE", -1.0)  # anything that is measured is 16
    late = [{"name": "bg", "language": "bg", "sites": "encoder:1-2"}]
    path = make_config(tmp_path, tiny_base, tiny_shards, training=TRAINING, adapters=late)
    cached = "training.prefix_cache=memory"
    for words in ([cached], []):
        [adapter] = train(load_config(path, words)).adapters
        made = SteeringVectors.load(adapter).training
        assert made is not None
        assert made.silence_stride == 1
    assert not events(load_config(path).run, "silence_stride")
    other = f"run={tmp_path / 'other'}"
    train(load_config(path, [other]))
    with pytest.raises(UserError, match=r"this run began with training\.silence_stride 16"):
        train(load_config(path, [other, cached]))


def test_a_run_that_began_with_a_number_keeps_it(tmp_path: Path) -> None:
    config = load_config(make_config(tmp_path, tmp_path, tmp_path, training=TRAINING), ["device=cpu"])
    assert settled(config, "cpu").training.silence_stride == "auto"
    config.run.mkdir()
    for before, kept in (({}, 1), ({"silence_stride": 8}, 8), ({"silence_stride": "auto"}, "auto")):
        (config.run / "config.yaml").write_text(yaml.safe_dump({"training": before}), encoding="utf-8")
        assert settled(config, "cpu").training.silence_stride == kept
