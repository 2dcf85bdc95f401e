"""What a job may compute with is settled at its start, from its config."""

import os
from pathlib import Path

import pytest
import torch
from tiny import make_config

from salsa_dist import load_config, train
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.run.kernels import settle_kernels


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_those_that_the_config_says(
    tmp_path: Path,
    tiny_base: Path,
    tiny_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    deterministic: bool,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    torch.backends.cudnn.allow_tf32 = True
    seen = []
    plain = FrozenBase.logits

    def looked_at(self: FrozenBase, batch: object) -> torch.Tensor:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32))
        return plain(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenBase, "logits", looked_at)
    config = make_config(tmp_path, tiny_base, tiny_shards, training={"steps": 2})
    try:
        train(load_config(config, [f"training.deterministic={deterministic}".lower()]))
        assert set(seen) == {(deterministic, False)}
        # Always: PyTorch looks at it once a process, and the next run in it may be deterministic.
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        settle_kernels(False)
