"""Sizes of activations, by hand."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from salsa_dist import load_speech_llm
from salsa_dist.cli import app
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips
from salsa_dist.speech_llms.activations import activation_sizes
from salsa_dist.steering.sites import site_modules


def test_a_layers_size_is_the_median_norm_over_the_root_of_the_width(
    tiny_base: Path, tiny_shards: Path
) -> None:
    llm = load_speech_llm(tiny_base)
    clips = first_clips(tiny_shards, ShardIndex.load(tiny_shards), "bg", 3, 30)
    norms: list[float] = []
    module = site_modules(llm.model)["llm.1"]
    handle = module.register_forward_hook(
        lambda _, __, out: norms.extend(
            math.sqrt(sum(x * x for x in row))
            for row in (out[0] if isinstance(out, tuple) else out).flatten(0, -2).tolist()
        )
    )
    sizes = activation_sizes(llm, clips)
    handle.remove()
    assert list(sizes) == list(llm.sites)
    assert sizes["llm.1"] == pytest.approx(
        sorted(norms)[(len(norms) - 1) // 2] / math.sqrt(32), rel=1e-5
    )
    with torch.no_grad():
        assert all(size > 0 for size in sizes.values())


def test_what_the_command_prints_is_a_setting(tiny_base: Path, tiny_shards: Path) -> None:
    arguments = ["sizes", str(tiny_base), str(tiny_shards), "--language", "bg", "--clips", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    scales = yaml.safe_load(done.output)["lr_scale"]
    assert {"encoder:0", "llm:2", "llm.cross_attention:1"} < set(scales)
    assert all(scale > 0 for scale in scales.values())
