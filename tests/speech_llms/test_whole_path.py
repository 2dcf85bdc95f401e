"""A chat family and one with CTC on the whole path: shards to vectors to transcripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_config
from tiny_ctc import CTC
from tiny_families import FAMILIES

from salsa_dist import jsonl
from salsa_dist.config import load_config
from salsa_dist.evaluation.run import evaluate
from salsa_dist.evaluation.transcripts import SCHEMA
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.loop import train


@pytest.mark.parametrize("family", ["qwen3_asr", "qwen2_audio", "wav2vec2"])
def test_trained_and_evaluated(family: str, tiny_shards: Path, tmp_path: Path) -> None:
    base = (FAMILIES | CTC)[family](tmp_path / "base")
    training = {"steps": 4, "lr": 0.05, "save_every_s": 0, "warmup": 0, "decay": "none"}
    steering = {"sites": "encoder" if family in CTC else "encoder+llm", "rule": "salsa"}
    config = load_config(make_config(tmp_path, base, tiny_shards, training=training, steering=steering))
    result = train(config)
    assert result.finished
    adapter = SteeringVectors.load(result.adapters[0])
    assert adapter.vectors["encoder.1"].shape == (24,)
    if family not in CTC:
        assert adapter.vectors["llm.1"].shape == (32,)
    steps = [line for line in read_events(tmp_path / "run") if line["event"] == "step"]
    losses = [step["adapters"]["bg"]["loss"] for step in steps]
    assert losses[-1] < losses[0]
    folder = evaluate(config)
    lines = [line for path in folder.glob("*.jsonl") for line in jsonl.read(path, SCHEMA, "")]
    assert {line["adapter"] for line in lines} == {None, "bg", "el"}
    steered = {line["key"]: line["hypothesis"] for line in lines if line["adapter"] == "bg"}
    plain = {line["key"]: line["hypothesis"] for line in lines if line["adapter"] is None}
    assert any(plain[key] != text for key, text in steered.items())


def read_events(run: Path) -> list[dict[str, object]]:
    import json

    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
