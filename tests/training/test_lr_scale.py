"""Learning rates of single layers (`training.lr_scale`)."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from run_results import events
from safetensors.torch import load_file
from tiny import make_config

from salsa_dist import load_config, train
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import read_clip
from salsa_dist.data.sampling import AdapterPlan
from salsa_dist.errors import UserError
from salsa_dist.run.folder import RunFolder
from salsa_dist.run.settled import settled
from salsa_dist.speech_llms.activations import activation_sizes
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.estimated_rates import START

ONE_STEP = {"steps": 1, "warmup": 0, "decay": "none"}


def test_adams_first_step_is_the_rate_times_the_layers_scale(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Adam's first step is the rate in every number, so scales are seen as they are."""
    training = {
        "steps": 1,
        "lr": 0.01,
        "warmup": 0,
        "decay": "none",
        "lr_scale": {"encoder": 3, "llm": 0.5, "encoder:1": 2},
    }
    path = make_config(tmp_path, tiny_base, tiny_shards, training=training)
    learned = SteeringVectors.load(train(load_config(path)).adapters[0]).vectors
    for site, expected in {"encoder.0": 3, "encoder.1": 2, "llm.0": 0.5, "llm.2": 0.5}.items():
        moved = learned[site].abs()
        assert moved[moved > 0].median() == pytest.approx(0.01 * expected, rel=1e-3)
        assert torch.count_nonzero(moved) > len(moved) / 2
    for path_or_word in ("projector", "encoder:9"):
        wrong = load_config(
            path, [f"run={tmp_path / 'no'}", f"training.lr_scale={{'{path_or_word}': 2}}"]
        )
        with pytest.raises(UserError, match="sites"):
            train(wrong)
    assert not (tmp_path / "no").exists()


def test_auto_makes_the_first_step_a_share_of_each_layers_activations(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    """Measured on the adapter's own first clips, written into the adapter and kept in the state."""
    path = make_config(
        *(tmp_path, tiny_base, tiny_shards),
        training={**ONE_STEP, "lr_scale": "auto"},
        data={"shards": str(tiny_shards), "clips_per_step": 4, "readers": 1},
    )
    config = load_config(path)
    folders = train(config).adapters
    llm = load_speech_llm(tiny_base)
    index = ShardIndex.load(tiny_shards)
    for folder, language in zip(folders, ("bg", "el"), strict=True):
        adapter = SteeringVectors.load(folder)
        assert adapter.training is not None
        assert adapter.training.lr == 0.05
        scales = adapter.training.lr_scale
        assert scales is not None
        assert scales.keys() == adapter.vectors.keys()
        plan = AdapterPlan(index.select("train", language), 4, 1, 0, llm.window_s)
        first = [*plan.step(0), *plan.step(1)]  # whatever the steps of the adapter
        clips = [read_clip(tiny_shards, sample.shard, sample.entry) for sample in first]
        sizes = activation_sizes(llm, clips)
        for site, scale in scales.items():
            assert scale == pytest.approx(sizes[site], rel=0.05)  # rounded to two digits
            moved = adapter.vectors[site].abs()
            assert moved[moved > 0].median() == pytest.approx(0.05 * scale, rel=1e-3)
    assert len({round(scale, 3) for scale in scales.values()}) > 2, "layers of one size show nothing"
    again = train(config).adapters  # from its last state: measured no more
    assert [SteeringVectors.load(a).training for a in again] == [
        SteeringVectors.load(a).training for a in folders
    ]


def test_each_rule_has_its_own_default_rate(tmp_path: Path) -> None:
    rules = ("salsa", "add", "gain")
    adapters = [{"name": rule, "language": "bg", "rule": rule} for rule in rules]
    adapters.append({"name": "given", "language": "bg", "rule": "gain", "lr": 0.5})
    more = {"adapters": adapters, "steering": {"sites": "encoder", "rule": "gain"}}
    path = make_config(tmp_path, tmp_path, tmp_path, training={"lr_scale": "auto"}, **more)
    assert [a.lr for a in load_config(path).adapter_settings()] == [0.05, 0.05, 0.01, 0.5]
    absolute = load_config(path, ["training.lr_scale={}"])
    assert [a.lr for a in absolute.adapter_settings()] == [0.01, 0.01, 0.01, 0.5]
    more["adapters"] = [{"name": "bg", "language": "bg"}]
    of_all = make_config(tmp_path, tmp_path, tmp_path, training={"lr_scale": "auto"}, **more)
    assert [a.lr for a in load_config(of_all).adapter_settings()] == [0.01]


def test_a_run_that_began_with_absolute_rates_keeps_them(tmp_path: Path) -> None:
    config = load_config(make_config(tmp_path, tmp_path, tmp_path, training={}), ["device=cpu"])
    relative = config.model_copy(
        update={"training": config.training.model_copy(update={"lr_scale": "auto"})}
    )
    assert relative.adapter_settings()[0].lr == 0.05
    assert settled(relative, "cpu").training.lr_scale == "auto"
    config.run.mkdir()
    for before in ({"training": {"lr": 0.01}}, {"training": {"lr": 0.01, "lr_scale": {}}}):
        (config.run / "config.yaml").write_text(yaml.safe_dump(before), encoding="utf-8")
        kept = settled(relative, "cpu")
        assert kept.training.lr_scale == {}
        assert kept.adapter_settings()[0].lr == 0.01
    (config.run / "config.yaml").write_text(json.dumps({"training": {"lr_scale": "auto"}}))
    assert settled(relative, "cpu").training.lr_scale == "auto"


def test_an_estimated_rate_is_what_the_steps_took(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    training = {"steps": 4, "lr": "auto", "lr_scale": "auto", "save_every_s": 0}
    path = make_config(tmp_path, tiny_base, tiny_shards, training=training)
    folders = train(load_config(path)).adapters
    rates = [e["adapters"]["bg"]["lr"] for e in events(tmp_path / "run", "step")]
    told = SteeringVectors.load(folders[0]).training
    assert told is not None
    assert 0 < max(rates) <= told.lr
    assert told.lr >= START
    assert told.lr_estimated
    words = f"{told.lr:g} relative to each layer's activations at most (estimated)"
    assert words in (folders[0] / "README.md").read_text()
    with pytest.raises(UserError, match=r"set training\.lr_scale to auto"):
        load_config(path, ["training.lr_scale={}"])


def test_an_estimate_that_starts_from_an_adapter_measures_the_way_from_it(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    training = {"steps": 2, "lr_scale": "auto", "save_every_s": 0}
    path = make_config(tmp_path, tiny_base, tiny_shards, training=training)
    folder = train(load_config(path)).adapters[0]
    begun = SteeringVectors.load(folder)
    assert begun.training is not None
    assert not begun.training.lr_estimated
    again = load_config(path).adapters[0].model_dump(mode="json", exclude_defaults=True)
    again["start_from"] = str(folder)
    words = [f"run={tmp_path / 'again'}", "training.lr=auto", f"adapters={json.dumps([again])}"]
    train(load_config(path, words))
    state = load_file(RunFolder(tmp_path / "again").state / "step-00000002.safetensors")
    assert all(torch.equal(state[f"rate_start/{site}"][0], v) for site, v in begun.vectors.items())
