"""Gemma's prompts, as its processor would write them, and what the authors' own batch would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import noise
from tiny_gemma import GEMMA

from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm


@pytest.fixture(scope="module", params=list(GEMMA))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SpeechLLM:
    return load_speech_llm(GEMMA[request.param](tmp_path_factory.mktemp("gemma") / "base"))


def test_the_prompt_is_its_authors(base: SpeechLLM) -> None:
    family: Any = base.family
    text = family.tokenizer.decode(family.prompt("el"))
    if family.is_3n:
        assert text == (
            "<bos><start_of_turn>user\nTranscribe the following speech segment in Greek:"
            "\n\n<start_of_audio><audio_soft_token><end_of_audio>\n\n<end_of_turn>\n"
            "<start_of_turn>model\n"
        )
    else:
        start, _, rest = text.partition("Transcribe the following")
        assert start == "<bos><|turn>user\n<|audio><|audio|><audio|>"
        assert rest.startswith(" speech segment in Greek into Greek text.\n\nFollow these specific")
        assert rest.endswith("and write 3 instead of three.<turn|>\n<|turn>model\n")
    assert "in Greek" not in family.tokenizer.decode(family.prompt("tw"))
    # As the template renders it, with the marks that the processor puts around the audio.
    tokenizer = family.tokenizer
    request = (
        text[text.index("Transcribe") :].partition("<turn|>")[0].partition("\n\n<start_of_audio>")[0]
    )
    turn = [{"type": "text", "text": request}, {"type": "audio", "audio": "clip.wav"}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": turn if family.is_3n else turn[::-1]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    around = "\n\n" if family.is_3n else ""
    marked = f"{around}{tokenizer.boa_token}{tokenizer.audio_token}{tokenizer.eoa_token}{around}"
    assert text == rendered.replace(tokenizer.audio_token, marked)


def test_placeholders_are_what_the_encoder_makes(base: SpeechLLM) -> None:
    family: Any = base.family
    for seconds in (0.1, 0.53, 1.97, 3.333):
        batch = family.prompt_batch([noise(seconds, "", "en", 0)])
        placed = int((batch.inputs["input_ids"] == family.audio_id).sum())
        audio = {k: v for k, v in batch.inputs.items() if k.startswith("input_features")}
        if family.is_3n:
            assert placed == base.model.config.audio_soft_tokens_per_image
        else:
            assert placed == int(base.model.model.audio_tower(*audio.values()).attention_mask.sum())
        assert torch.isfinite(base.model(**batch.inputs).logits).all()


def test_what_has_no_audio_or_no_template_is_refused(base: SpeechLLM, tmp_path: Path) -> None:
    family: Any = base.family
    if not family.is_3n:
        folder = GEMMA["gemma4"](tmp_path / "large")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"audio_config": None}))
        with pytest.raises(UserError, match="has no audio encoder: take E2B or E4B"):
            load_speech_llm(folder)
    folder = GEMMA["gemma3n" if family.is_3n else "gemma4"](tmp_path / "pretrained")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template: take the -it checkpoint"):
        load_speech_llm(folder)
