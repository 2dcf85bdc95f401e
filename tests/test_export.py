"""Exports: the other engines' arithmetic, written out from their documentation, gives our logits."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from salsa_dist import SteeringVectors, UserError, load_speech_llm
from salsa_dist.cli import app
from salsa_dist.export.control_vector import export
from salsa_dist.folding.fold import logits, noise_clips, steered_logits
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.attachment import describe
from salsa_dist.steering.rules.registry import RULES


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


def adapter(base: SpeechLLM, *sites: str, rule: str = "add") -> SteeringVectors:
    noise = torch.Generator().manual_seed(1)
    numbers = 32 * RULES[rule].parts
    vectors = {site: torch.randn(numbers, generator=noise) for site in sites}
    return SteeringVectors(vectors, rule, name="bg", language="bg", **describe(base))


@pytest.mark.parametrize(
    ("engine", "rule"), [("llama.cpp", "add"), ("easysteer", "add"), ("easysteer", "salsa")]
)
def test_its_arithmetic_is_ours(base: SpeechLLM, tmp_path: Path, engine: str, rule: str) -> None:
    """At layer N, counted from 0, both add scale times `direction.N` to every position.

    EasySteer's `normalize` then gives each position the norm that it had.
    """
    gguf = pytest.importorskip("gguf")
    vectors = adapter(base, "llm.1", "llm.2", rule=rule)
    file, *spec = export(vectors, engine, tmp_path / "bg.gguf")
    reader = gguf.GGUFReader(str(file))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    directions = {t.name: torch.tensor(t.data) for t in reader.tensors}
    scale, layers, keeps_norm = 1.0, [1, 2], False
    if spec:
        asked = json.loads(spec[0].read_text())
        scale, layers = asked["scale"], asked["target_layers"]
        assert asked["steer_vector_local_path"] == file.name
        assert asked["algorithm"] == "direct"
        keeps_norm = asked["normalize"]
        assert asked["prefill_trigger_tokens"] == asked["generate_trigger_tokens"] == [-1]
    assert sorted(directions) == [f"direction.{layer}" for layer in layers]

    def adds(direction: torch.Tensor) -> object:
        def hook(module: object, args: object, output: object) -> object:
            first = isinstance(output, tuple)
            before = output[0] if first else output  # type: ignore[index]
            hidden = before + scale * direction
            if keeps_norm:
                norms = [h.norm(dim=-1, keepdim=True) for h in (before, hidden)]
                hidden = hidden * norms[0] / norms[1]
            return (hidden, *output[1:]) if first else hidden  # type: ignore[index]

        return hook

    inputs = base.family.training_batch(noise_clips(base, "bg")).inputs
    ours, plain = steered_logits(base, vectors, inputs), logits(base, inputs)
    stack = base.model.get_decoder().layers
    hooks = [stack[n].register_forward_hook(adds(directions[f"direction.{n}"])) for n in layers]
    theirs = logits(base, inputs)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(plain, ours, atol=1e-2)


def test_what_an_engine_does_not_do_is_refused_by_name(base: SpeechLLM, tmp_path: Path) -> None:
    for made, engine, said in (
        (adapter(base, "llm.1", rule="salsa"), "llama.cpp", "rule salsa keeps the norm"),
        (adapter(base, "llm.1", rule="gain"), "llama.cpp", "rule gain scales each channel"),
        (adapter(base, "llm.1", rule="gain"), "easysteer", "rule gain scales each channel"),
        (adapter(base, "llm.attention.1"), "llama.cpp", "steers llm.attention.1, inside a layer"),
        (adapter(base, "encoder.1", "llm.1"), "easysteer", "steers encoder.1"),
        (adapter(base, "llm.0"), "llama.cpp", "steers llm.0, the one layer"),
        (adapter(base, "llm.1"), "vllm", "no such engine; known are llama.cpp, easysteer"),
    ):
        with pytest.raises(UserError, match=said):
            export(made, engine, tmp_path / "bg.gguf")
    assert list(tmp_path.iterdir()) == []


def test_the_spec_does_not_replace_the_vectors(base: SpeechLLM, tmp_path: Path) -> None:
    out = tmp_path / "bg.json"
    with pytest.raises(UserError, match=r"name the vectors' file bg\.gguf"):
        export(adapter(base, "llm.1"), "easysteer", out)
    assert not out.exists()


def test_the_command(base: SpeechLLM, tmp_path: Path) -> None:
    saved = adapter(base, "encoder.0").save(tmp_path / "bg")
    words = ["export", str(saved), "--to", "easysteer", "--out", str(tmp_path / "x.gguf")]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, UserError)
    assert "steers encoder.0" in str(refused.exception)
