"""`salsa-dist fold`: what is written is the steered base, on every family that has the biases."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_base
from typer.testing import CliRunner

from salsa_dist import SteeringVectors, UserError, load_speech_llm
from salsa_dist.cli import app
from salsa_dist.data.index import ShardIndex
from salsa_dist.data.reading import first_clips
from salsa_dist.folding import approximate
from salsa_dist.folding import fold as folding
from salsa_dist.folding.fold import fold, logits, noise_clips, steered_logits
from salsa_dist.libraries.transformers_weights import made_of
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.speech_llms.sources import Reshaped, Source
from salsa_dist.speech_llms.weight_files import StoredTensor
from salsa_dist.steering.attachment import describe
from salsa_dist.steering.rules.registry import RULES

SITES = [f"{c}.{i}" for c in ("encoder", "llm") for i in range(3)]
INSIDE = [
    "encoder.attention.1",
    "encoder.feed_forward.1",
    "llm.cross_attention.2",
    "llm.feed_forward.2",
]


def adapter(base: SpeechLLM, rule: str = "add", sites: list[str] = SITES) -> SteeringVectors:
    noise = torch.Generator().manual_seed(1)
    numbers = 32 * RULES[rule].parts
    vectors = {site: torch.randn(numbers, generator=noise) for site in sites}
    return SteeringVectors(vectors, rule, name="bg", language="bg", **describe(base))


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> SpeechLLM:
    return load_speech_llm(tiny_base)


@pytest.mark.parametrize(("rule", "sites"), [("add", SITES + INSIDE), ("gain", INSIDE)])
def test_the_checkpoint_is_the_steered_base(
    base: SpeechLLM, tiny_base: Path, tmp_path: Path, rule: str, sites: list[str]
) -> None:
    vectors = adapter(base, rule, sites)
    done = fold(str(tiny_base), vectors, tmp_path / "folded")
    # A block's bias may be its layer's too: then it holds both vectors.
    own = {"encoder.1": "fc2", "encoder.feed_forward.1": "fc2"}
    for site in own.keys() & vectors.vectors.keys():
        name = f"model.encoder.layers.1.{own[site]}"
        with_gain = (f"{name}.weight",) if rule == "gain" else ()
        assert done.biases[site] == (*with_gain, f"{name}.bias")
    cross = done.biases["llm.cross_attention.2"]
    assert cross[-1] == "model.decoder.layers.2.encoder_attn.out_proj.bias"
    inputs = base.family.training_batch(noise_clips(base, "bg")).inputs
    again = load_speech_llm(tmp_path / "folded")
    difference = float((logits(again, inputs) - steered_logits(base, vectors, inputs)).abs().max())
    assert difference == done.differences["float32"] < 1e-4 * done.largest
    assert float((logits(again, inputs) - logits(base, inputs)).abs().max()) > 0.1 * done.largest
    before, after = (load_file(f / "model.safetensors") for f in (tiny_base, tmp_path / "folded"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for own in done.biases.values() for name in own}
    assert list(tmp_path.iterdir()) == [tmp_path / "folded"]
    assert "largest logit" in (tmp_path / "folded/README.md").read_text()
    config = json.loads((tmp_path / "folded/config.json").read_text())
    assert config["folded_adapter"] == vectors.digest()  # or a large base would have its old revision
    with pytest.raises(UserError, match="was made for another base"):
        vectors.check(again)


def test_it_is_checked_in_the_bases_own_precision(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    file = folder / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, {"format": "pt"})
    done = fold(str(folder), adapter(load_speech_llm(folder)), tmp_path / "folded")
    assert list(done.differences) == ["float32", "bfloat16"]
    kept = load_file(tmp_path / "folded/model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def test_what_can_not_be_folded(
    base: SpeechLLM, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "folded"
    with pytest.raises(UserError, match="its rule salsa keeps the norm"):
        fold(str(tiny_base), adapter(base, "salsa"), out)
    with pytest.raises(UserError, match="WhisperEncoderLayer, has no map with a bias that"):
        fold(str(tiny_base), adapter(base, "gain"), out)
    with pytest.raises(UserError, match="was made for another base"):
        fold(str(make_base(tmp_path / "other", seed=1)), adapter(base), out)
    near = approximate.Approximate(tmp_path / "none", 4, print)
    with pytest.raises(UserError, match="folds exactly: leave out --approximate"):
        fold(str(tiny_base), adapter(base), out, approximate=near)
    monkeypatch.setattr(folding, "_put", lambda *_: None)
    with pytest.raises(UserError, match=r"reloaded, a logit differs by .* nothing was written"):
        fold(str(tiny_base), adapter(base), out)
    assert [p.name for p in tmp_path.iterdir()] == ["other"]
    out.mkdir()
    with pytest.raises(UserError, match="already exists"):
        fold(str(tiny_base), adapter(base), out)


def test_a_place_that_takes_no_folder_is_refused_before_the_base_is_loaded(
    base: SpeechLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "folded", tmp_path / "new" / ("x" * 300)):
        with pytest.raises(UserError, match=r"can't be written: (Not a directory|File name too long)"):
            fold("nowhere", adapter(base), out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_bias_that_is_no_stored_tensor_is_not_folded_into(
    base: SpeechLLM, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(model: Any, stored: dict[str, StoredTensor]) -> dict[str, Source]:
        return {n: Reshaped(s.dtype, s.shape, s) for n, s in made_of(model, stored).items()}

    monkeypatch.setattr("salsa_dist.speech_llms.unfilled.made_of", made)
    with pytest.raises(UserError, match=r"does not hold model\.encoder.*\.bias as one tensor"):
        fold(str(tiny_base), adapter(base), tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_biases_come_near_a_rule_that_keeps_the_norm(
    base: SpeechLLM,
    tiny_base: Path,
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = adapter(base, "salsa").save(tmp_path / "bg")
    out = tmp_path / "folded"
    words = ["fold", str(saved), "--base", str(tiny_base), "--out", str(out), "--approximate"]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, UserError)
    assert "--approximate and --clips go together" in str(refused.exception)
    done = CliRunner().invoke(app, [*words, "--clips", str(tiny_shards), "--max-clips", "4"])
    assert done.exit_code == 0, done.exception
    first, cer, wer = done.stdout.splitlines()[:3]
    assert first == "On 4 dev clips, no bias was fitted on any of them:"
    for line, name in ((cer, "CER"), (wer, "WER")):
        assert re.fullmatch(rf"{name}  base [\d.]+%, steered [\d.]+%, folded [\d.]+%", line)
        assert line in (out / "README.md").read_text()
    # Near on speech that no bias was fitted on: nearer than the base is, and than the mean shift alone.
    again, vectors = load_speech_llm(out), SteeringVectors.load(saved)
    clips = first_clips(tiny_shards, ShardIndex.load(tiny_shards), "bg", 4, 2.0, "dev")
    inputs = base.family.training_batch(clips).inputs
    wanted = steered_logits(base, vectors, inputs).log_softmax(-1)

    def divergence(other: SpeechLLM) -> float:
        own = logits(other, inputs).log_softmax(-1)
        return float((wanted.exp() * (wanted - own)).sum(-1).mean())

    monkeypatch.setattr(approximate, "_STEPS", 0)
    near = approximate.Approximate(tiny_shards, 1, lambda line: None)
    fold(str(tiny_base), vectors, tmp_path / "start", approximate=near)
    shifted = load_speech_llm(tmp_path / "start")
    assert divergence(again) < 0.5 * divergence(shifted) < 0.1 * divergence(base)


def test_the_command(base: SpeechLLM, tiny_base: Path, tmp_path: Path) -> None:
    saved = adapter(base, sites=["llm.0"]).save(tmp_path / "bg")
    out = tmp_path / "folded"
    words = ["fold", str(saved), "--base", str(tiny_base), "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert "llm.0  into model.decoder.layers.0.fc2.bias" in done.stdout
    assert "largest difference of a logit in float32: " in done.stdout
