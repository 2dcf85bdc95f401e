"""The layers of a loaded base are searched for once, whoever asks for its sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_config

from salsa_dist import load_config
from salsa_dist.methods.steering import Steering
from salsa_dist.speech_llms import load
from salsa_dist.steering import attachment, sites
from salsa_dist.steering.attachment import describe
from salsa_dist.steering.vectors import SteeringVectors


def test_they_are_found_once(
    tmp_path: Path, tiny_base: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(*args: Any) -> Any:
        asked.append(args)
        return sites.find_layers(*args)

    for module in (load, attachment):
        monkeypatch.setattr(module, "find_layers", counted)
    llm = load.load_speech_llm(tiny_base)
    config = load_config(
        make_config(tmp_path, tiny_base, tiny_shards), ["training.lr_scale={encoder: 2.0}"]
    )
    with Steering(config).trainable(config, llm, torch.device("cpu")) as trained:
        saved = SteeringVectors(
            {site: vector[0] for site, vector in trained.bank.vectors.items()}, "salsa", **describe(llm)
        )
    assert list(saved.check(llm)) == list(llm.sites)
    assert len(asked) == 1
