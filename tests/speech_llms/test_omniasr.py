"""OmniASR-LLM asks for a language as its processor does, and learns texts as it tokenizes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import noise
from tiny_ctc import OMNIASR

from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import load_speech_llm


@pytest.mark.skipif(not OMNIASR, reason="this transformers has no OmniASR")
def test_a_language_is_asked_for_as_the_processor_does(tmp_path: Path) -> None:
    base = load_speech_llm(OMNIASR["omniasr"](tmp_path / "base"), language_as={"tw": "ell_Grek"})
    family: Any = base.family
    clip = noise(1.13, "лека нощ", "bg", 0)
    wanted = family.processor.apply_transcription_request(clip.audio, language="bg")
    found = family.prompt_batch([clip]).inputs
    for name in ("input_ids", "input_values", "padding_mask"):
        assert torch.equal(found[name], torch.as_tensor(wanted[name]))
    asked = family.tokenizer.decode
    assert asked(family.prompt("bg")) == "<extra_id_1><extra_id_0><|lang:bul_cyrl|><s>"
    assert family.prompt("bul_Cyrl") == family.prompt("bg-en") == family.prompt("bg")
    assert family.prompt("tw") == family.prompt("el")
    assert "<|lang:auto|>" in asked(family.prompt("ka"))
    assert "has no name for it and names none" in family.stand_in("ka")

    answer = {"role": "assistant", "content": [{"type": "text", "text": clip.text}]}
    user = {"role": "user", "content": [{"type": "audio", "audio": clip.audio}]}
    user["content"].append({"type": "language", "language": "bg"})
    text = family.processor.apply_chat_template([user, answer], tokenize=False)
    labels = family.training_batch([clip]).labels.tolist()
    ids = family.tokenizer(text, add_special_tokens=False).input_ids
    assert ids[ids.index(family.tokenizer.bos_token_id) + 1 :] == labels
    with pytest.raises(UserError, match="OmniASR takes no instruction"):
        load_speech_llm(base.name, prompt="Write this down.")
