"""Steering on a base with quantised weights: gradients, a run and its resume, what is refused.

`make quantized` runs these; without torchao and bitsandbytes they are left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conformance import ALONE, clips, random_bank
from resumed import killed
from tiny import make_config

from salsa_dist import evaluate, load_config, load_speech_llm, train
from salsa_dist.config import PlacementConfig
from salsa_dist.errors import UserError
from salsa_dist.folding.fold import fold
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.planner.base_shape import read_shape
from salsa_dist.run.folder import RunFolder
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.speech_llms.quantization import LIBRARIES, bytes_of
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.loss import token_losses

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")
WHOLE = PlacementConfig(kind="replicate")
KINDS = list(LIBRARIES)
WEIGHTS_ONLY = ["int8", "nf4"]  # of bnb8 the activations are rounded too, which has no derivative


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base, quantization=request.param)


def test_gradients_are_finite_differences(base: SpeechLLM) -> None:
    if base.quantization not in WEIGHTS_ONLY:
        pytest.skip("activations are rounded")
    bank = random_bank(base, ["salsa", "add"])
    batch = base.family.training_batch([c for c in clips(base) if c.row < 2])
    with FrozenBase(base, bank, ALONE, WHOLE) as placed:
        token_losses(placed, batch).sum().backward()
        gradients = {site: v.grad.clone() for site, v in bank.vectors.items() if v.grad is not None}
        length = torch.cat([g.flatten() for g in gradients.values()]).norm()
        found = []
        for step in (0.01, -0.02):  # along the gradient, to each side
            for site, gradient in gradients.items():
                bank.vectors[site].data += step * gradient / length
            with torch.no_grad():
                found.append(token_losses(placed, batch).double().sum())
    assert float((found[0] - found[1]) / 0.02) == pytest.approx(float(length), rel=5e-3)


def test_vectors_steer_and_zero_ones_change_no_bit(base: SpeechLLM, tiny_base: Path) -> None:
    batch = base.family.training_batch(clips(base)[:1]).to("cpu", base.model.dtype)
    with torch.no_grad():
        plain = base.model(**batch.inputs, use_cache=False).logits
        for size, same in ((0.0, True), (0.3, False)):
            placed = FrozenBase(base, random_bank(base, ["salsa"], size), ALONE, WHOLE)
            with placed, placed.bank.rows(batch.rows):
                steered = base.model(**batch.inputs, use_cache=False).logits
            assert torch.equal(plain, steered) is same
    whole = load_speech_llm(tiny_base)
    with torch.no_grad():
        exact = whole.model(**batch.inputs, use_cache=False).logits
    apart = float((plain - exact).norm() / exact.norm())
    assert 0 < apart < (0.5 if base.quantization == "nf4" else 0.05)


def test_planned_bytes_are_those_in_memory(base: SpeechLLM, tiny_base: Path) -> None:
    shape = read_shape(tiny_base, dtype="float32", quantization=base.quantization)
    # A layer of 8 bits takes its scales away from its weight when it first runs.
    assert shape.bytes == bytes_of(load_speech_llm(tiny_base, quantization=base.quantization).model)
    assert base.parameters == shape.parameters == load_speech_llm(tiny_base).parameters


def test_a_run_is_resumed_to_the_bit(
    base: SpeechLLM, tiny_base: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    found = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        path = make_config(
            *(folder, tiny_base, tiny_shards),
            base={"name": str(tiny_base), "quantization": base.quantization},
            training={"steps": 4, "lr": 0.02, "save_every_s": 0},
        )
        if name == "stopped":
            killed(load_config(path), 2)
        train(load_config(path))
        found.append(SteeringVectors.load(RunFolder(folder / "run").adapters / "bg"))
    one, two = found
    assert one.quantization == base.quantization
    assert all(torch.equal(v, two.vectors[site]) for site, v in one.vectors.items())
    evaluate(load_config(path))
    assert any((folder / "run" / "evaluation").iterdir())
    refused = load_config(path, ["placement.offload=cpu", f"run={tmp_path / 'refused'}"])
    with pytest.raises(
        UserError, match=rf"is quantised \({base.quantization}\).*placement.offload=none"
    ):
        train(refused)
    assert not refused.run.exists()


def test_an_adapter_goes_onto_the_base_as_stored_with_one_line(
    base: SpeechLLM, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = SteeringVectors.load(
        SteeringVectors(
            {"encoder.0": torch.ones(32)}, "salsa", base="tiny", quantization=base.quantization or ""
        ).save(tmp_path / "adapter")
    )
    caplog.set_level("WARNING", "salsa_dist")
    own.check(base)
    assert not caplog.messages
    own.check(load_speech_llm(tiny_base))
    [line] = caplog.messages
    assert f"quantised as {base.quantization}" in line
    assert f'quantization="{base.quantization}"' in (tmp_path / "adapter" / "README.md").read_text()


def test_a_checkpoint_that_is_quantised_already(tmp_path: Path, tiny_base: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "int8"))
    load_speech_llm(tiny_base, quantization="int8").model.save_pretrained(folder)
    again = load_speech_llm(folder, filled=False)
    assert again.quantization is None
    assert bytes_of(again.model) < bytes_of(load_speech_llm(tiny_base).model)
    assert read_shape(folder, dtype="float32").quantized == "torchao"
    with pytest.raises(UserError, match=r"quantised already \(torchao\)"):
        load_speech_llm(folder, quantization="nf4")
    with pytest.raises(UserError, match=r"can't be folded into: its weights are quantised \(torchao\)"):
        fold(str(folder), SteeringVectors({"encoder.0": torch.ones(32)}, "add"), tmp_path / "folded")
