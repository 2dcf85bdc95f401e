"""VibeVoice-ASR asks as its processor does, and reads the JSON that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import noise
from tiny import make_config
from tiny_families import MORE

from salsa_dist.config import load_config
from salsa_dist.data.audio import resample
from salsa_dist.data.clip import SAMPLE_RATE
from salsa_dist.errors import UserError
from salsa_dist.speech_llms.load import load_speech_llm
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.training.loop import train


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


def test_adapters_of_the_same_clips(tiny_shards: Path, tmp_path: Path) -> None:
    """No encoder layer can be steered, so two adapters of one language have nothing to share."""
    base = MORE["vibevoice_asr"](tmp_path / "base")
    adapters = [{"name": n, "language": "bg", "lr": lr} for n, lr in (("a", 0.05), ("b", 0.02))]
    training = {"steps": 2, "dev_every": 1, "dev_clips": 2, "save_every_s": 0}
    more = {"steering": {"sites": "llm", "rule": "salsa"}, "training": training}

    def vectors(chosen: list[dict[str, Any]], run: str) -> dict[str, torch.Tensor]:
        path = make_config(tmp_path / run, base, tiny_shards, adapters=chosen, **more)
        return dict(SteeringVectors.load(train(load_config(path)).adapters[-1]).vectors)

    (tmp_path / "both").mkdir()
    (tmp_path / "one").mkdir()
    together, alone = vectors(adapters, "both"), vectors(adapters[1:], "one")
    for site, vector in alone.items():
        torch.testing.assert_close(together[site], vector, rtol=1e-5, atol=1e-7)
    training["prefix_cache"] = "memory"
    (tmp_path / "kept").mkdir()
    with pytest.raises(UserError, match=r"has no encoder sites: set it to off"):
        vectors(adapters, "kept")
