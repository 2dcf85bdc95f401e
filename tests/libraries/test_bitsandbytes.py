"""What salsa_dist/libraries/bitsandbytes.py assumes; run by `make quantized`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salsa_dist import load_speech_llm
from salsa_dist.libraries import bitsandbytes as library

pytest.importorskip("bitsandbytes")


def test_a_weight_knows_its_scales(tiny_base: Path) -> None:
    for kind, wanted in (("nf4", [torch.Size([24]), torch.Size([16])]), ("bnb8", [torch.Size([48])])):
        base = load_speech_llm(tiny_base, quantization=kind)
        layer = base.model.model.encoder.layers[0]
        assert [t.shape for t in library.kept_beside(layer.fc1.weight)] == wanted
        assert library.kept_beside(layer.fc1.bias) == []


def test_an_8_bit_layer_says_nothing(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = load_speech_llm(tiny_base, quantization="bnb8")
    layer = base.model.model.encoder.layers[0].fc1
    layer(torch.randn(2, 32))
    assert "MatMul8bitLt" not in caplog.text
    caplog.set_level("WARNING", "bitsandbytes.autograd._functions")
    layer(torch.randn(2, 32))
    assert "MatMul8bitLt" in caplog.text  # else there is nothing to hold back any more
    library.quiet()


def test_a_4_bit_layer_keeps_its_weight(tiny_base: Path) -> None:
    layer = load_speech_llm(tiny_base, quantization="nf4").model.model.encoder.layers[0].fc1
    assert layer.support_avx512bf16_for_cpu is False
    before = layer.weight.data.clone()
    with torch.no_grad():
        first = layer(torch.ones(1, 32))
    assert torch.equal(before, layer.weight.data)
    assert torch.equal(first, layer(torch.ones(1, 32, requires_grad=True)))
