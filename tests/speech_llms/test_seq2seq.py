"""Encoder-decoder bases: their prompts, and a clip alone as its authors encode it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import noise
from tiny_seq2seq import SEQ2SEQ

from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.speech_llms.moonshine import whole_frames


@pytest.mark.parametrize("name", [n for n in ("cohere_asr", "canary") if n in SEQ2SEQ])
def test_a_language_is_asked_for_as_the_processor_does(name: str, tmp_path: Path) -> None:
    base = load_speech_llm(SEQ2SEQ[name](tmp_path / "base"), language_as={"tw": "el", "yo": "xx"})
    family: Any = base.family
    text = family.tokenizer.decode(family.prompt("el"))
    assert "<|el|><|el|><|pnc|>" in text.replace(" ", "")
    assert family.prompt("tw") == family.prompt("el")
    assert family.prompt("ka") == family.prompt("en")
    assert "language ka: this base does not know it, en is announced" in family.stand_in("ka")
    assert family.stand_in("el") is None
    with pytest.raises(UserError, match=r"base\.language_as: this base knows no language 'xx'"):
        family.prompt("yo")
    with pytest.raises(UserError, match="takes no instruction"):
        load_speech_llm(base.name, prompt="Write this down.")


def test_seamless_names_languages_by_three_letters(tmp_path: Path) -> None:
    folder = SEQ2SEQ["seamless_m4t"](tmp_path / "base")
    base = load_speech_llm(folder, language_as={"tw": "ell"})
    family: Any = base.family
    decoded = family.tokenizer.decode
    assert decoded(family.prompt("bg")) == decoded(family.prompt("bul")) == "</s>__bul__"
    assert family.prompt("tw") == family.prompt("el")
    assert family.prompt("ka") == family.prompt("en")
    assert "language ka: this base does not know it, en is announced" in family.stand_in("ka")
    clip = noise(1.12, "kon", "bg", 0)  # of an odd number of frames it reads half a last one
    batch = family.training_batch([clip, noise(2.2, "vuk", "en", 0)])
    from transformers import SeamlessM4Tv2ForSpeechToText

    plain = SeamlessM4Tv2ForSpeechToText.from_pretrained(folder).eval()
    alone = family.processor.feature_extractor([clip.audio], sampling_rate=16_000, return_tensors="pt")
    names = ("input_features", "attention_mask")
    with torch.no_grad():
        wanted = plain.speech_encoder(**{k: alone[k] for k in names}).last_hidden_state
        found = base.model.speech_encoder(**{k: batch.inputs[k] for k in names}).last_hidden_state
        # As transformers itself asks for the language.
        asked = plain.generate(**{k: alone[k] for k in names}, tgt_lang="bul", max_new_tokens=5)
        ours = family.generate(base.model, family.prompt_batch([clip]), 5)
    assert torch.allclose(found[:1, : wanted.shape[1]], wanted, atol=1e-5)
    assert ours[0].text == family.transcript(asked[0].tolist())
    (folder / "generation_config.json").unlink()
    with pytest.raises(UserError, match=r"generation_config.json lists no languages"):
        load_speech_llm(folder)


def test_moonshines_clip_alone_is_what_transformers_makes(tmp_path: Path) -> None:
    folder = SEQ2SEQ["moonshine"](tmp_path / "base")
    base = load_speech_llm(folder)
    clip = noise(1.13, "kon", "en", 0)
    batch = base.family.training_batch([clip, noise(2.2, "vuk", "en", 0)])
    from transformers import MoonshineForConditionalGeneration

    plain = MoonshineForConditionalGeneration.from_pretrained(folder).eval()
    audio, _ = whole_frames(clip.audio)
    with torch.no_grad():
        wanted = plain.model.encoder(torch.from_numpy(audio)[None]).last_hidden_state
        names = ("input_values", "attention_mask")
        found = base.model.model.encoder(**{k: batch.inputs[k] for k in names}).last_hidden_state
    assert torch.allclose(found[:1, : wanted.shape[1]], wanted, atol=1e-5)
    assert base.family.stand_in("tw") is None  # its prompt names no language
