"""VibeVoice-ASR asks as its processor does, and reads the JSON that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conformance import noise
from tiny_families import MORE

from salsa_dist.data.audio import resample
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.speech_llms.load import load_speech_llm


def test_requests_and_answers(tmp_path: Path) -> None:
    base = load_speech_llm(MORE["vibevoice_asr"](tmp_path / "base"), prompt="names: Ана, {language}")
    family: Any = base.family
    clip = noise(1.135, 'каза "да"', "bg", 0)
    rate = family.processor.feature_extractor.sampling_rate
    audio = resample(clip.audio, SAMPLE_RATE, rate)
    batch = family.prompt_batch([clip])
    wanted = family.processor.apply_transcription_request(
        audio, prompt="names: Ана, Bulgarian", audio_kwargs={"sampling_rate": rate}
    )
    assert family.tokenizer.decode(batch.inputs["input_ids"][0]) == family.tokenizer.decode(
        wanted["input_ids"][0]
    )
    for name in ("input_values", "padding_mask"):
        assert torch.equal(batch.inputs[name], wanted[name])
    with torch.no_grad():  # no noise is added
        assert torch.equal(*(base.model(**batch.inputs).logits for _ in range(2)))

    written = family.tokenizer.decode(family.answer_ids(clip))
    assert written == (
        '<|im_start|>assistant\n[{"Start":0,"End":1.14,"Speaker":0,"Content":"каза \\"да\\""}]'
        "<|im_end|>\n<|endoftext|>"
    )
    two = '[{"Start":0,"Speaker":0,"Content":"a b"},{"Start":1,"Speaker":1,"Content":"c"}]'
    for text, found in ((two, "a b c"), (two[:60], two[:60]), ("[1]", "[1]"), ("5", "5"), ("", "")):
        assert family.transcript(family.tokenizer(f"<|im_start|>assistant\n{text}").input_ids) == found
