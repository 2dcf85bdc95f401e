"""What `salsa-dist fold` wrote, converted by CTranslate2's own converter, gives the same text."""

import os
from pathlib import Path

import pytest
import torch

from salsa_dist import SteeringVectors, load_speech_llm
from salsa_dist.folding.fold import fold, noise_clips
from salsa_dist.steering.attachment import describe

NEW_TOKENS = 24


def bases() -> list[Path | None]:
    """None is the tiny one; the real one where a demo has fetched it."""
    cache = Path(os.environ.get("SALSA_DIST_CACHE", "~/.cache/salsa-dist")).expanduser()
    return [None, *(p for p in [cache / "whisper-base"] if p.is_dir())]


@pytest.mark.parametrize("folder", bases(), ids=lambda p: p.name if p else "tiny")
def test_ctranslate2_writes_the_same_text(folder: Path | None, tiny_base: Path, tmp_path: Path) -> None:
    """The whole way: fold, convert with CTranslate2's own converter, transcribe."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    from transformers import WhisperProcessor

    folder = folder or tiny_base
    base = load_speech_llm(folder)
    width = base.model.config.d_model
    noise = torch.Generator().manual_seed(3)
    steered = {f"encoder.{i}": torch.randn(width, generator=noise) / 8 for i in (1, 2)}
    vectors = SteeringVectors(steered, "add", name="bg", language="bg", **describe(base))
    fold(str(folder), vectors, tmp_path / "folded")
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "folded"))
    converter.convert(str(tmp_path / "converted"))
    whisper = ctranslate2.models.Whisper(str(tmp_path / "converted"), compute_type="float32")

    clips = noise_clips(base, "bg")
    prompts = base.family.prompt_batch(clips)
    with vectors.attach(base):
        ours = [t.text for t in base.family.generate(base.model, prompts, NEW_TOKENS)]
    plain = [t.text for t in base.family.generate(base.model, prompts, NEW_TOKENS)]
    assert ours != plain
    features = ctranslate2.StorageView.from_array(prompts.inputs["input_features"].numpy())
    prompt = [base.family.prompt("bg")] * len(clips)
    # CTranslate2 writes at most half of max_length.
    found = whisper.generate(features, prompt, beam_size=1, max_length=2 * NEW_TOKENS)
    tokenizer = WhisperProcessor.from_pretrained(folder).tokenizer
    theirs = [tokenizer.decode(r.sequences_ids[0], skip_special_tokens=True).strip() for r in found]
    assert theirs == [text.strip() for text in ours]
