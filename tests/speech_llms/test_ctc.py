"""What only bases with CTC have: blanks, frames, a vocabulary of letters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance import noise
from tiny import make_config
from tiny_ctc import CTC, make_wav2vec2

from salsa_dist import SteeringVectors, transcribe
from salsa_dist.config import load_config
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.sweeps.cost import base_facts, clip_cost


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SpeechLLM:
    torch.set_num_threads(1)
    return load_speech_llm(make_wav2vec2(tmp_path_factory.mktemp("ctc") / "base"))


def test_repeats_become_one_and_blanks_part_them(base: SpeechLLM) -> None:
    ids = base.family.tokenizer.convert_tokens_to_ids
    k, o, n, word = (ids(c) for c in "kon|")
    frames = [0, k, k, 0, o, n, n, 0, n, word, word, k, o, o]

    class Says(torch.nn.Linear):
        dtype = torch.float32

        def forward(self, **inputs: object) -> object:
            assert not torch.is_grad_enabled()
            logits = torch.nn.functional.one_hot(torch.tensor([frames]), 70).float()
            return type("Output", (), {"logits": logits})

    batch = base.family.prompt_batch([noise(0.3, "", "en", 0)])
    batch.options["frames"] = [len(frames) - 1]
    found = base.family.generate(Says(1, 1), batch, 20)
    assert (found[0].text, found[0].finished) == ("konn ko", True)
    cut = base.family.generate(Says(1, 1), batch, 2)
    assert (cut[0].text, cut[0].finished) == ("ko", False)


def test_frames_are_those_that_the_encoder_makes(base: SpeechLLM) -> None:
    for seconds in (0.1, 0.123, 1.0, 2.345):
        batch = base.family.prompt_batch([noise(seconds, "", "en", 0)])
        logits = base.model(**batch.inputs).logits
        assert batch.options["frames"] == [logits.shape[1]]


def test_what_a_transcript_can_be(base: SpeechLLM, tmp_path: Path) -> None:
    family = base.family
    assert family.transcript(family.text_ids(noise(1, "Kon, leti!", "en", 0))) == "kon leti"
    with pytest.raises(UserError, match=r"clip en/0/1: this base has no token for most characters"):
        family.training_batch([noise(1, "小鳥", "en", 0)])
    # As long as its frames is the most; a repeat needs a blank between.
    assert family.training_batch([noise(0.1, "abcd", "en", 0)]).label_positions.sum() == 4
    for text in ("abcde", "abba"):
        with pytest.raises(UserError, match="its transcript needs 5 frames, its audio gives 4"):
            family.training_batch([noise(0.1, text, "en", 0)])
    with pytest.raises(UserError, match=r"base\.prompt: a base with CTC reads no prompt: remove it"):
        load_speech_llm(base.name, prompt="Transcribe")


def test_letters_that_are_all_capitals(tmp_path: Path) -> None:
    folder = make_wav2vec2(tmp_path / "base")
    path = folder / "vocab.json"
    path.write_text(json.dumps({k.upper() if len(k) == 1 else k: i for k, i in read(path).items()}))
    family = load_speech_llm(folder).family
    assert family.transcript(family.text_ids(noise(1, "Kon leti", "en", 0))) == "KON LETI"


def read(path: Path) -> dict[str, int]:
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("family", CTC)
def test_transcribed(family: str, tmp_path: Path) -> None:
    folder = CTC[family](tmp_path / "base")
    base = load_speech_llm(folder, window_s=2)
    batch = base.family.training_batch([noise(2, "kon", "en", 0), noise(0.8, "leti", "en", 0)])
    assert base.model(**batch.inputs).logits.shape[:2] == batch.label_positions.shape
    for text in ("小鳥 鳥", "小鳥 小 k"):
        with pytest.raises(UserError, match="no token for most characters"):
            base.family.training_batch([noise(1, text, "en", 0)])
    assert (base.family.padded_to_s is not None) is (family == "hubert")
    vectors = {"encoder.0": torch.linspace(-9, 9, 24)}
    adapter = SteeringVectors(vectors, "add", base=base.name, revision=base.revision)
    audio = (0.1 * np.random.default_rng(0).standard_normal(50_000)).astype(np.float32)
    plain = transcribe(base, [(audio, 16_000)], language="bg")
    steered = transcribe(base, [(audio, 16_000)], language="bg", vectors=adapter)
    assert plain != steered


def test_a_sweep_tells_what_it_costs(base: SpeechLLM, tmp_path: Path) -> None:
    facts = base_facts(load_config(make_config(tmp_path, Path(base.name), tmp_path)))
    assert facts.layers["encoder"] == 2
    assert not any(word.startswith("llm") for word in facts.layers)
    assert clip_cost(facts, ["encoder"], shared=True).each_step > 0
