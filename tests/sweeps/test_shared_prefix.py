"""Sharing clips, keeping their prefix and dropping rivals change nothing for an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conformance import ALONE
from tiny import make_config

from salsa_dist import SteeringVectors, UserError, evaluate, load_config, load_speech_llm, train
from salsa_dist.config import PlacementConfig
from salsa_dist.data.index import ShardIndex
from salsa_dist.metrics.error_rates import score
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.shared_prefix import SharedPrefix
from salsa_dist.speech_llms.base_files import UNKNOWN
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.sites import whole_layers
from salsa_dist.training import job as jobs
from salsa_dist.training import opening, prefix_pass
from salsa_dist.training.from_config import make_batches
from salsa_dist.training.loss import token_losses

STEPS = 50
ADAPTERS: list[dict[str, Any]] = [
    {"name": "low", "language": "bg", "sites": "encoder:1"},
    {"name": "high", "language": "bg", "sites": "encoder:2+llm", "rule": "add", "lr": 0.02},
    {"name": "llm", "language": "bg", "sites": "llm:1", "lr": 0.03},
    {"name": "both", "language": "bg", "sites": "encoder:1-2", "lr": 0.005},
    {"name": "other", "language": "el", "sites": "encoder:1"},
]
Trained = dict[str, dict[str, torch.Tensor]]


def run(folder: Path, base: Path, shards: Path, **training: Any) -> Trained:
    folder.mkdir()
    training = {"steps": STEPS, "lr": 0.01, "clip_norm": 0.3, "save_every_s": 60, **training}
    done = train(load_config(make_config(folder, base, shards, adapters=ADAPTERS, training=training)))
    assert done.finished
    return {path.name: SteeringVectors.load(path).vectors for path in done.adapters}


def apart(one: Trained, other: Trained, name: str) -> float:
    return max(float((one[name][site] - v).norm() / v.norm()) for site, v in other[name].items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_shards: Path) -> Trained:
    """What each adapter learns where every sample runs through all layers by itself."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return run(folder, tiny_base, tiny_shards, share_prefix=False)


@pytest.mark.parametrize(
    "training",
    [{}, {"micro_batch": 3}, {"prefix_cache": "memory"}, {"prefix_cache": "disk"}],
    ids=["shared", "shared in small passes", "kept in memory", "kept on disk"],
)
def test_sharing_clips_changes_no_adapter(
    plain: Trained, training: dict[str, Any], tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    found = run(tmp_path / "run", tiny_base, tiny_shards, **training)
    for adapter in ADAPTERS:
        name = adapter["name"]
        assert all(v.norm() > 0.05 for v in plain[name].values())
        assert apart(found, plain, name) < 1e-5, name


def test_shared_clips_walk_once_through_what_lies_below(tiny_base: Path) -> None:
    """Three adapters, two clips: the elements that each layer sees."""
    base = load_speech_llm(tiny_base)
    sites = whole_layers(base.layer_lists)
    names = [("a", ("encoder.1",)), ("b", ("encoder.2", "llm.0")), ("c", ("llm.1",))]
    bank = Bank([AdapterSpec(n, s, "salsa") for n, s in names], dict.fromkeys(sites, 32))
    frozen = FrozenBase(base, bank, ALONE, PlacementConfig(kind="replicate"))
    from conformance import noise

    family: Any = base.family
    clips = [noise(s, "vuk", "bg", row) for s in (0.5, 0.8) for row in (0, 1, 2)]
    clips = [
        type(c)(c.key.replace(f"/{c.row}/", "/"), c.audio, c.text, c.language, c.row) for c in clips
    ]
    distinct = list({c.key: c for c in clips}.values())
    seen: dict[str, int] = {}
    for site, module in sites.items():
        # What a layer's own parts get, behind the hooks of the layer itself.
        part = module.self_attn_layer_norm
        part.register_forward_hook(lambda m, args, out, s=site: seen.__setitem__(s, args[0].shape[0]))
    token_losses(frozen, family.shared_batch(clips, distinct)).sum().backward()
    # Two clips up to encoder.1; from there a's two more, from encoder.2 on all six.
    assert [seen[f"encoder.{i}"] for i in range(3)] == [2, 2, 4]
    assert seen["llm.0"] == 6
    frozen.close()


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)], ids=["same clips", "own clips"])
def test_a_walk_in_two_parts_is_for_shared_clips_alone(
    seeds: tuple[int, int], tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    adapters = [{"name": f"a{i}", "language": "bg", "seed": seed} for i, seed in enumerate(seeds)]
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards, adapters=adapters))
    index = ShardIndex.load(config.data.shards)
    (batch,) = make_batches(config, index, load_speech_llm(tiny_base), ALONE)[0].batches
    assert (batch.shared is not None) == (seeds[0] == seeds[1])


def test_kept_prefix_runs_nothing_below(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training the first layer's own computation is not called; only filling calls it."""
    calls: list[int] = []
    keep = opening.keep_prefix

    def watched(config: Any, base: Any, *rest: Any) -> Any:
        base.model.get_encoder().layers[0].self_attn.register_forward_hook(
            lambda *a: calls.append(len(calls))
        )
        store = keep(config, base, *rest)
        calls.append(-1)
        return store

    monkeypatch.setattr(opening, "keep_prefix", watched)
    run(tmp_path / "run", tiny_base, tiny_shards, prefix_cache="memory", steps=4)
    assert calls[-1] == -1  # no call after the filling
    assert len(calls) > 1


def test_a_damaged_kept_file_is_made_again(
    plain: Trained, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    store = tmp_path / "store"
    cached = {"prefix_cache": "disk", "prefix_folder": str(store)}
    run(tmp_path / "one", tiny_base, tiny_shards, steps=4, **cached)
    files = sorted(store.rglob("*.safetensors"))
    raw = bytearray(files[0].read_bytes())
    raw[-1] ^= 0xFF
    files[0].write_bytes(raw)
    found = run(tmp_path / "two", tiny_base, tiny_shards, **cached)
    assert all(apart(found, plain, a["name"]) < 1e-5 for a in ADAPTERS)


def test_no_two_bases_share_a_folder_of_prefixes(tmp_path: Path) -> None:
    """Not even of one width, window and commit; what has no known commit gets none."""
    base: Any = SimpleNamespace(
        shared=SimpleNamespace(before_first=False, first="encoder.3"),
        dtype=torch.float32,
        family=SimpleNamespace(window_s=30.0),
    )
    folders = []
    for name, revision in (("org/a", "1"), ("org/b", "1"), ("org/a", "2"), ("org/a", "1")):
        asked: Any = SimpleNamespace(
            base=SimpleNamespace(name=name, quantization=None),
            training=SimpleNamespace(prefix_cache="disk", prefix_folder=tmp_path),
        )
        folders.append(prefix_pass._folder(asked, base, revision, "shards"))
    assert len(set(folders[:3])) == 3
    assert folders[3] == folders[0]
    with pytest.raises(UserError, match="the commit of base org/a is unknown"):
        prefix_pass._folder(asked, base, UNKNOWN, "shards")


def test_too_little_room_for_the_prefix_is_refused(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    with pytest.raises(UserError, match="prefix_cache_gb = 1e-05"):
        run(
            tmp_path / "run",
            tiny_base,
            tiny_shards,
            prefix_cache="memory",
            prefix_cache_gb=1e-5,
        )


HALVING = {"halving": {"rungs": [10, 30], "keep": 0.5}, "dev_clips": 4}


def test_halving_never_changes_an_adapter_that_survives(
    plain: Trained, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    found = run(tmp_path / "run", tiny_base, tiny_shards, **HALVING)
    rungs = json.loads((tmp_path / "run" / "run" / "halving.json").read_text())["rungs"]
    assert [rung["step"] for rung in rungs] == [10, 30]
    dropped = [name for rung in rungs for name in rung["dropped"]]
    # Of four Bulgarian adapters two stay, then one; the Greek one has no rival.
    assert [len(rung["dropped"]) for rung in rungs] == [2, 1]
    assert "other" not in dropped
    for rung in rungs:
        left = [n for n in rung["dev_loss"] if n != "other" and n not in rung["dropped"]]
        assert max(rung["dev_loss"][n] for n in left) <= min(
            rung["dev_loss"][n] for n in rung["dropped"]
        )
    for adapter in ADAPTERS:
        moved = apart(found, plain, adapter["name"])
        assert moved > 1e-2 if adapter["name"] in dropped else moved < 1e-5, adapter["name"]


def test_halving_goes_on_after_a_stop_as_if_there_was_none(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(tmp_path / "whole", tiny_base, tiny_shards, **HALVING)
    # Killed before the decision of the second rung reaches the disk, its state being there.
    real = jobs.Job._drop_worse

    def killed(self: Any, step: int) -> None:
        if step == 30:
            raise KeyboardInterrupt
        real(self, step)

    monkeypatch.setattr(jobs.Job, "_drop_worse", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tiny_base, tiny_shards, **HALVING, save_every_s=0)
    monkeypatch.undo()
    config = load_config(tmp_path / "cut" / "config.yaml")
    found = {p.name: SteeringVectors.load(p).vectors for p in train(config).adapters}
    for name, vectors in wanted.items():
        assert all(torch.equal(found[name][site], v) for site, v in vectors.items()), name


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_halving_by_errors_decodes_as_evaluation_does(
    cache: str, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    steady = {"warmup": 0, "decay": "none", "save_every_s": 60}
    rule = {"halving": {"rungs": [10], "keep": 0.5, "metric": "cer"}, "dev_clips": 6}
    run(tmp_path / "halved", tiny_base, tiny_shards, **steady, **rule, steps=12, prefix_cache=cache)
    (rung,) = json.loads((tmp_path / "halved" / "run" / "halving.json").read_text())["rungs"]
    # The same adapters as they were before that step, scored by `evaluate`.
    folder = tmp_path / "scored"
    folder.mkdir()
    path = make_config(
        *(folder, tiny_base, tiny_shards),
        adapters=ADAPTERS,
        training={"steps": 10, "lr": 0.01, "clip_norm": 0.3, **steady},
        evaluation={"split": "dev", "windows_s": [None], "batch": 4, "max_new_tokens": 8},
    )
    config = load_config(path)
    train(config)
    evaluate(config)
    errors: dict[str, list[int]] = {}
    for file in (folder / "run" / "evaluation").glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            edits = score(line["reference"], line["hypothesis"], line["language"]).characters
            counts = errors.setdefault(line["adapter"], [0, 0])
            counts[0] += edits.errors
            counts[1] += edits.length
    wanted = {a["name"]: errors[a["name"]][0] / errors[a["name"]][1] for a in ADAPTERS}
    assert rung["cer"] == pytest.approx(wanted)
    assert len(set(wanted.values())) > 2
    rivals = sorted((n for n in wanted if n != "other"), key=lambda n: wanted[n])
    assert set(rung["dropped"]) == set(rivals[2:])


def test_which_sample_runs_for_which() -> None:
    """The plan of a batch by hand: clips 0 0 1 1; adapters of encoder.0, of encoder.2, of the LLM."""
    layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    sites = {f"encoder.{i}": layer for i, layer in enumerate(layers)}
    specs = [AdapterSpec("a", ("encoder.0",), "add"), AdapterSpec("b", ("encoder.2",), "add")]
    bank = Bank([*specs, AdapterSpec("c", (), "add")], dict.fromkeys(sites, 4))
    shared = SharedPrefix(bank, sites, None)
    assert shared.first == "encoder.0"
    # Up to encoder.2 the second sample runs for the third, as they are of one clip and both unsteered.
    assert shared.plan([0, 0, 0, 1], [0, 1, 2, 1]) == {
        "encoder.1": [0, 1, 1, 3],
        "encoder.2": [0, 1, 1, 3],
    }
    assert shared.plan([0, 0, 1, 2], [0, 1, 2, 1]) == {}
    shared.close()
