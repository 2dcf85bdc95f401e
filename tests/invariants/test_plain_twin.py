"""`train` gives the vectors of `examples/plain_salsa.py`, which has no code of ours in it."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from clips import samples
from safetensors.torch import load_file
from tiny import make_config

from salsa_dist import SteeringVectors, load_config, load_speech_llm, train
from salsa_dist.data.index import ShardIndex
from salsa_dist.placement.ranks import join
from salsa_dist.training.from_config import make_batches

PLAIN = Path(__file__).parents[2] / "examples" / "plain_salsa.py"
STEPS = 20


@pytest.fixture(scope="module")
def plain() -> Any:
    return SimpleNamespace(**runpy.run_path(str(PLAIN)))


def clips_of(config: Any) -> list[list[tuple[Any, str]]]:
    """Audio and text of the clips of every step, as a run of `config` samples them."""
    index = ShardIndex.load(config.data.shards)
    made = samples(index)
    with join(60) as ranks:
        batches = make_batches(config, index, load_speech_llm(config.base.name), ranks)
        keys = [batches.keys(step) for step in range(STEPS)]
    return [[(made[key][1], made[key][2]["text"]) for key in step] for step in keys]


def test_train_gives_the_vectors_of_the_plain_loop(
    plain: Any, tmp_path: Path, tiny_base: Path, tiny_shards: Path
) -> None:
    training = {"steps": STEPS, "lr": 0.02, "warmup": 0.2, "clip_norm": 0.5}
    one = [{"name": "bg", "language": "bg"}]
    config = load_config(make_config(tmp_path, tiny_base, tiny_shards, adapters=one, training=training))
    ours = SteeringVectors.load(train(config).adapters[0]).vectors
    base, processor = plain.load(tiny_base)
    theirs = plain.steer(base)
    plain.train(base, processor, theirs, clips_of(config), "bg", lr=0.02, warmup=0.2, clip_norm=0.5)
    assert ours.keys() == theirs.keys()
    for site, wanted in theirs.items():
        assert wanted.norm() > 0.1  # it has moved
        assert (ours[site] - wanted).norm() / wanted.norm() < 1e-5, site


def test_the_plain_script_runs_as_its_first_lines_say(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(16_000), 16_000)
        lines.append(json.dumps({"audio": str(tmp_path / name), "text": "vuk lisa"}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "bg.safetensors"
    words = [str(tiny_base), str(tmp_path / "clips.jsonl"), str(out), "--language", "bg"]
    monkeypatch.setattr("sys.argv", [PLAIN.name, *words, "--steps", "3", "--batch", "2"])
    runpy.run_path(str(PLAIN), run_name="__main__")
    saved = load_file(out)
    assert list(saved) == [f"{part}.{i}" for part in ("encoder", "llm") for i in range(3)]
    assert all(torch.isfinite(v).all() and v.any() for v in saved.values())
