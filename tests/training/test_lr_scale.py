"""Learning rates of single layers (`training.lr_scale`)."""

from pathlib import Path

import pytest
import torch
from tiny import make_config

from salsa_dist import load_config, train
from salsa_dist.errors import UserError
from salsa_dist.steering.vectors import SteeringVectors


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
