"""Prompts are what the processor's own template renders of the authors' request, or what transformers'
own `generate` begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import noise
from tiny_families import FAMILIES, MORE
from tiny_phi4 import PHI4
from tiny_seq2seq import SEQ2SEQ

from salsa_dist.speech_llms.load import load_speech_llm

ALL = {**FAMILIES, **MORE, **PHI4, **SEQ2SEQ}
AUDIO = {"type": "audio", "audio": "clip.wav"}
# Of the chat templates of Qwen/Qwen2.5-Omni-7B and Qwen3-Omni-30B-A3B-Instruct, what a turn of text and
# audio takes: these are in the processor's files, which need torchvision.
OMNI = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'audio' %}BEFORE{{ token }}AFTER"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REQUESTS: dict[str, list[Any]] = {
    "qwen2_audio": [AUDIO, "Detect the language and recognize the speech: <|el|>"],
    "qwen2_5_omni": [AUDIO, "Transcribe the Greek audio into text without any punctuation marks."],
    "qwen3_omni": [AUDIO, "Transcribe the Greek audio into text."],
    "granite_speech": ["<|audio|>can you transcribe the speech into a written format?"],
    "granite_speech_plus": ["<|audio|>can you transcribe the speech into a written format?"],
    "phi4_multimodal": [AUDIO, "Transcribe the audio clip into text."],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_prompt_is_what_the_template_renders(name: str, tmp_path: Path) -> None:
    family: Any = load_speech_llm(ALL[name](tmp_path / "base")).family
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in REQUESTS[name]]
    content = parts[0]["text"] if name.startswith("granite") else parts
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    options: dict[str, Any] = {}
    renderer: Any = family.tokenizer
    if "omni" in name:
        marks = ("bos", "eos") if name == "qwen2_5_omni" else ("start", "end")
        template = OMNI.replace("BEFORE", f"<|audio_{marks[0]}|>").replace(
            "AFTER", f"<|audio_{marks[1]}|>"
        )
        options = {"chat_template": template, "token": family.audio_token}
        if name == "qwen2_5_omni":
            turns.insert(0, {"role": "system", "content": "You are a speech recognition model."})
    elif getattr(getattr(family, "processor", None), "chat_template", None):
        renderer = family.processor
    wanted = renderer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    assert family.prompt_text("el") == wanted
    assert family.tokenizer.decode(family.prompt("el")) == wanted


def test_a_language_is_asked_for_in_the_processors_words(tmp_path: Path) -> None:
    family: Any = load_speech_llm(MORE["fun_asr_nano"](tmp_path / "base")).family
    clip = noise(1.2, "", "en", 0)
    wanted = family.processor.apply_transcription_request(clip.audio, language="en")
    found = family.prompt_batch([clip]).inputs["input_ids"]
    assert torch.equal(found, wanted["input_ids"])


@pytest.mark.parametrize("name", [n for n in ("cohere_asr", "canary") if n in SEQ2SEQ])
def test_a_decoder_begins_as_the_processor_says(name: str, tmp_path: Path) -> None:
    family: Any = load_speech_llm(SEQ2SEQ[name](tmp_path / "base")).family
    clip = noise(0.3, "", "el", 0)
    if name == "cohere_asr":
        wanted = family.processor(clip.audio, language="el", sampling_rate=16_000)["decoder_input_ids"]
    else:
        wanted = family.processor.apply_transcription_request(clip.audio, "el")["decoder_input_ids"]
    assert family.prompt("el")[-len(wanted[0]) :] == torch.as_tensor(wanted[0]).tolist()


@pytest.mark.parametrize("language", ["bg", "el"])
def test_whisper_begins_as_its_own_generate_does(language: str, tmp_path: Path) -> None:
    base = load_speech_llm(FAMILIES["whisper"](tmp_path / "base"))
    begun: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        begun.append(kwargs["input_ids"])

    base.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    features = base.family.prompt_batch([noise(0.3, "", language, 0)]).inputs["input_features"]
    base.model.generate(features, language=language, task="transcribe", max_new_tokens=1)
    assert begun[0][0].tolist() == base.family.prompt(language)
