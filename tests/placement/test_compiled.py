"""`training.compile`: kernels of torch.compile give what the base gives without them."""

from __future__ import annotations

from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from conformance import ALONE, apart, clips, gradients, random_bank
from tiny import make_config
from torch._dynamo.utils import counters

from salsa_dist import SteeringVectors, UserError, load_config, load_speech_llm, train
from salsa_dist.config import PlacementConfig
from salsa_dist.placement import frozen_base
from salsa_dist.placement.compiled_layers import compile_layers
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.steering.bank import AdapterSpec, Bank
from salsa_dist.steering.widths import site_widths

needs_compiler = pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")


RULES = ("salsa", "add", "salsa")


@needs_compiler
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_change_rounding_alone(tiny_base: Path, checkpointed: bool) -> None:
    base = load_speech_llm(tiny_base)
    batch = [clip for clip in clips(base) if clip.row >= 0]
    torch._dynamo.reset()
    # One site inside a layer: a break in its kernel.
    sites = (*base.select("encoder+llm"), "encoder.attention.0")
    widths = {site: width for site, width in site_widths(base.layer_lists).items() if site in sites}
    found, frames = [], []
    generator = torch.Generator().manual_seed(0)
    numbers = [
        {site: 0.3 * torch.randn(width, generator=generator) for site, width in widths.items()}
        for _ in RULES
    ]
    for compiled in ("off", "rule", "layers"):
        counters["frames"].clear()
        bank = Bank([AdapterSpec(f"a{i}", sites, r) for i, r in enumerate(RULES)], widths)
        for row, own in enumerate(numbers):
            bank.set_row(row, own)
        frozen = FrozenBase(
            *(base, bank, ALONE, PlacementConfig(kind="replicate"), checkpointed),
            compiled=compiled,
        )
        assert bank.compiled == (compiled != "off")
        found.append(gradients(frozen, batch))
        frames.append(counters["frames"]["ok"])
        frozen.close()
        assert not any("forward" in vars(layer) for layer in base.sites.values())
    assert frames[0] == 0
    assert frames[1] >= 2  # both directions of the rule
    assert frames[2] >= 2  # each kind of layer; the rule's kernels are there
    (plain, of_plain), *others = found
    for fused, of_fused in others:
        assert apart(fused, plain) < 1e-5
        for site, gradient in of_plain.items():
            assert gradient.any()
            assert apart(of_fused[site], gradient) < 1e-4, site


@needs_compiler
def test_a_run_trains_and_decodes_with_compiled_layers(
    tiny_base: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def noted(layers: Any) -> Any:
        own = list(layers)
        compiled.append(len(own))
        return compile_layers(own)

    monkeypatch.setattr(frozen_base, "compile_layers", noted)
    vectors = []
    for how in ("off", "layers"):
        (tmp_path / how).mkdir()
        training = {"steps": 3, "compile": how, "dev_every": 2, "dev_clips": 2, "dev_metric": "cer"}
        path = make_config(tmp_path / how, tiny_base, tiny_shards, training=training)
        vectors.append(SteeringVectors.load(train(load_config(path)).adapters[0]).vectors)
    assert compiled == [6]  # the layers of the base, in one run of the two
    plain, fused = vectors
    for site, vector in plain.items():
        torch.testing.assert_close(fused[site], vector, rtol=1e-3, atol=1e-6)


def test_where_it_can_not_be_had_it_is_refused(
    tiny_base: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_config(tmp_path, tiny_base, tiny_shards)
    for settings, said in (
        (
            ["training.compile=rule", "method.kind=lora"],
            "steering vectors, not for method lora",
        ),
        (["training.compile=layers", "base.quantization=int8"], "not compiled with base.quantization"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(path, settings)
    base = load_speech_llm(tiny_base)
    bank = random_bank(base, ["salsa"])
    offloaded = PlacementConfig(kind="full", offload="cpu")
    with pytest.raises(UserError, match=r"training\.compile: layers need a whole copy of the base"):
        FrozenBase(base, bank, ALONE, offloaded, compiled="layers")

    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", no_compiler)
    said = r"makes no kernel for cpu here \(InvalidCxxCompiler: No working .* found\): it needs a C\+\+"
    with pytest.raises(UserError, match=said):
        FrozenBase(base, bank, ALONE, PlacementConfig(kind="replicate"), compiled="rule")
