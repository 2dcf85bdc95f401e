"""docs/models.md, made from what the probe saw of each tiny model."""

from __future__ import annotations

from pathlib import Path

from tiny_models import MODELS, TinyModel

from salsa_dist.speech_llms.load import FAMILIES
from salsa_dist.steering.probe import SiteReport

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

# Complete checkpoints in tests/tiny_families.py that have no file of ours.
TESTED_BY_PROCESSOR = ("audioflamingo3", "fun_asr_nano", "nemo_speechlm")

_HEAD = """\
# Models

The tests write this page (`SALSA_WRITE_DOCS=1 pytest tests/models`); do not edit it. Each line is
a tiny model of that architecture with random weights. Its layers were found by structure, without
a table of module paths, and tested with one forward and backward pass on noise. For each model and
the rules `salsa` and `add`:

- zero vectors change no logit by one bit;
- other vectors change the logits;
- a vector's gradient equals finite differences.

*Rows* says what the first dimension of an encoder layer's output counts: samples, fixed chunks,
windows of a long clip, or tokens of all samples packed together. *Padding changes* lists the
components whose activations for a clip change when the clip is in a batch with a longer one. *Whole
by* names the family file of a base that trains, is partitioned over two ranks and transcribes in the
tests, on a complete tiny checkpoint. The other models can be steered, and trained with code of your
own. Some of them may also train without a file, as AudioFlamingo3 does: if the processor has a chat
template, a tokenizer, a feature extractor and an audio token, and the config has `audio_token_id`.
This is not tested.

Gemma3n, Gemma4 and Phi4-Multimodal need neither torchvision nor timm: only the audio parts of their
processors are loaded, and Gemma3n is loaded without its vision tower (with transformers 5.17, it needs
timm). Phi4-Multimodal is its revision for transformers, `refs/pr/70` of
microsoft/Phi-4-multimodal-instruct. Its LoRA for speech is added to its weights when it is loaded.
SeamlessM4Tv2 transcribes by translating into the language that is spoken. VibeVoice-ASR has LLM sites
alone, since transformers runs its encoders without gradients. Its transcripts are learned and read as
one segment of the JSON with times and speakers that it writes; the noise that its authors add to the
audio is left out. Only Whisper and Qwen2-Audio accept solved examples (in-context).

Kyutai and Voxtral-Realtime write a token for every 80 ms of audio, words at the time when they are said
and padding between them. They learn from shards with word times, which `salsa-dist shards align` makes.
Kyutai has LLM sites alone: it reads discrete codes of the audio, which no gradient passes. A clip of it
fits its decoder's context, with silence and delay. Neither takes an instruction, a language or solved
examples.

Not whole, and why: transducers (RNN-T, TDT) have another loss. For the others, no family was written
yet.

| model | transformers class | encoder layers | rows | LLM layers | sites that work | padding changes \
| whole by |
|---|---|---|---|---|---|---|---|
"""


def page(reports: dict[str, list[SiteReport]]) -> str:
    return _HEAD + "".join(_line(name, found) for name, found in reports.items())


def _line(name: str, reports: list[SiteReport]) -> str:
    model = MODELS[name]
    rows = {r.component: r.rows for r in reports}
    works = []
    for component in ("encoder", "llm"):
        own = [r for r in reports if r.component == component]
        if own:
            works.append(f"{component} {sum(not r.reason for r in own)}/{len(own)}")
    minds = [
        c
        for c in ("encoder", "llm")
        if any(r.component == c and not r.padding_invariant for r in reports)
    ]
    llm = f"`{model.llm}`" if model.llm else "none"
    llm += ", 4-D" if any(r.dimension for r in reports) else ""
    cells = [
        name,
        f"`{model.architecture}`",
        f"`{model.encoder}`" if model.encoder else "none",
        rows.get("encoder") or "-",
        llm,
        ", ".join(works),
        ", ".join(minds) or "no",
        _whole_by(model),
    ]
    return "| " + " | ".join(cells) + " |\n"


def _whole_by(model: TinyModel) -> str:
    """The module of its family; `-` where no complete checkpoint of it is tested."""
    model_type = model.config().model_type
    if family := FAMILIES.get(model_type):
        return f"`{family.__module__.rpartition('.')[2]}.py`"
    return "`any_chat.py`" if model_type in TESTED_BY_PROCESSOR else "-"
