"""A model card in Hugging Face's form, from the facts of `adapter.json`.

---
library_name: salsa-dist      front matter, YAML: what the hub searches by
---
# bg                          what it is, how to use it, what it was trained on, its limits
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from salsa_dist.steering.licences import hub_word
from salsa_dist.steering.rules.registry import rule_named


@dataclass(frozen=True)
class Score:
    """One error rate of an adapter and of zero-shot, as fractions, with 95% intervals.

    Attributes:
        language, split, metric: of what: such as `bg`, `test`, `cer`.
        window_s: audio window that it was decoded with.
        utterances: how many.
        zero_shot, steered, low, high: the rates, and the interval of the steered one.
        gain, gain_low, gain_high: by which share the rate fell.
        normaliser: what both texts went through before they were compared.
    """

    language: str
    split: str
    metric: str
    window_s: float
    utterances: int
    zero_shot: float
    steered: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    normaliser: str = "not recorded"


def model_card(facts: Mapping[str, Any], scores: Sequence[Score] = (), repository: str = "") -> str:
    """The text of README.md.

    Args:
        facts: the tree of `adapter.json`.
        scores: what its evaluation gave.
        repository: `user/name` of the hub where the card will stand; "": a folder.
    """
    return f"---\n{_front_matter(facts, scores)}---\n\n" + "\n\n".join(
        [
            f"# {facts['name']}",
            _what_it_is(facts),
            "## Use\n\n" + _use(facts, repository),
            "## Training\n\n" + _training(facts),
            *(["## Results\n\n" + _results(facts, scores)] if scores else []),
            "## Limits\n\n" + _limits(facts),
        ]
    )


def _front_matter(facts: Mapping[str, Any], scores: Sequence[Score]) -> str:
    fields: dict[str, Any] = {"library_name": "salsa-dist"}
    if facts["base"]["name"]:
        fields["base_model"] = facts["base"]["name"]
    if facts["language"]:
        fields["language"] = [facts["language"]]
    if licence := _licence(facts):
        known = hub_word(licence)
        fields |= {"license": known} if known else {"license": "other", "license_name": licence}
    fields["pipeline_tag"] = "automatic-speech-recognition"
    fields["tags"] = ["salsa-dist", "steering-vectors", "speech-llm", facts["rule"]]
    if scores:
        fields["model-index"] = [{"name": facts["name"], "results": _index(facts, scores)}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _places(word: str, count: int) -> str:
    """`3 layers of the encoder`; `3 attention blocks of the encoder`, of `encoder.attention`."""
    component, _, block = word.partition(".")
    what = f"{block.replace('_', '-')} block" if block else "layer"
    return f"{count} {what}{'s' * (count > 1)} of the {component}"


def _what_it_is(facts: Mapping[str, Any]) -> str:
    base = facts["base"]
    sites = Counter(site.rpartition(".")[0] for site in facts["sites"])
    where = " and ".join(_places(word, count) for word, count in sites.items())
    formula = rule_named(facts["rule"]).formula
    model = f" ({base['architecture']})" if base["architecture"] else ""
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    if kind := base.get("quantization"):
        revision += f", its weights quantised as `{kind}`,"
    language = f" for the language `{facts['language']}`" if facts["language"] else ""
    return (
        f"Steering vectors{language}, for the frozen speech-LLM "
        f"`{base['name'] or 'not named'}`{model}{revision}: one vector for each of {where}, "
        f"{facts['trained_numbers']:,} numbers in all. Each changes the output there by the rule "
        f"`{facts['rule']}`, `{formula}`. The base's weights are not part of it and do not change.\n\n"
        f"SHA-256 of `adapter.safetensors`: `{facts['sha256']}`"
    )


def _index(facts: Mapping[str, Any], scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The results as the hub reads them: rates in percent."""
    corpus = facts["data"]["name"] if facts["data"] else "not recorded"
    return [
        {
            "task": {"type": "automatic-speech-recognition"},
            "dataset": {"name": f"{corpus} ({s.language}, {s.split})", "type": corpus},
            "metrics": [{"type": s.metric, "value": round(100 * s.steered, 2)}],
        }
        for s in scores
    ]


def _use(facts: Mapping[str, Any], repository: str) -> str:
    base, training = facts["base"], facts["training"]
    arguments = [_quoted(base["name"])]
    if base["revision"] and not base["revision"].startswith("local-"):
        arguments.append(f"revision={_quoted(base['revision'])}")
    if kind := base.get("quantization"):
        arguments.append(f"quantization={_quoted(kind)}")
    if training:
        arguments.append(f"window_s={training['window_s']:g}")
    language = f"language={_quoted(facts['language'])}"
    code = [
        "from salsa_dist import SteeringVectors, load_speech_llm, transcribe",
        "",
        f"base = load_speech_llm({', '.join(arguments)})",
        f"vectors = SteeringVectors.from_pretrained({_quoted(repository)})"
        if repository
        else f"vectors = SteeringVectors.load({_quoted(facts['name'])})  # this folder",
        f'print(transcribe(base, ["clip.wav"], {language}, vectors=vectors))',
    ]
    text = "```python\n" + "\n".join(code) + "\n```"
    if base["revision"].startswith("local-"):
        text += "\n\nThe base was a folder: name yours. Its revision is a hash of its files."
    return text


def _training(facts: Mapping[str, Any]) -> str:
    data, training = facts["data"], facts["training"]
    lines = []
    if data:
        licence = data["licence"] or "not stated"
        lines.append(
            f"Speech: `{_line(data['name'])}`, licence {_line(licence)}, list of shards "
            f"`{data['shards']}`."
        )
    else:
        lines.append("The speech that it was trained on is not recorded.")
    if training:
        by = f"audio window {training['window_s']:g} s, by salsa-dist {training['salsa_dist']}"
        lines.append(
            f"{training['steps']} steps at a learning rate of {rate_in_words(training)}, "
            f"seed {training['seed']}, {by}; the base's own loss on transcripts (cross-entropy or CTC)."
            if training["lr"]
            else f"Computed without steps from mean activations, {by}."
        )
    else:
        lines.append("No training run of its own is recorded: it may be scaled or averaged.")
    return " ".join(lines)


def rate_in_words(training: Mapping[str, Any]) -> str:
    """The learning rate of the facts about an adapter's training, with what it is relative to."""
    relative = " relative to each layer's activations" if training.get("lr_scale") else ""
    estimated = " (estimated)" if training.get("lr_estimated") else ""
    return f"{training['lr']:g}{relative} at most{estimated}"


def _results(facts: Mapping[str, Any], scores: Sequence[Score]) -> str:
    corpus = f" on `{_line(facts['data']['name'])}`" if facts["data"] else ""
    rows = [
        "| language | split | window | utterances | metric | zero-shot | steered | gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        steered = f"{s.steered:.1%} ({s.low:.1%} to {s.high:.1%})"
        gain = f"{s.gain:.1%} ({s.gain_low:.1%} to {s.gain_high:.1%})"
        rows.append(
            f"| {s.language} | {s.split} | {s.window_s:g} s | {s.utterances} | {s.metric.upper()} | "
            f"{s.zero_shot:.1%} | {steered} | {gain} |"
        )
    normaliser = ", ".join(sorted({s.normaliser for s in scores}))
    return (
        f"Error rates{corpus}, with 95% bootstrap intervals. The gain is the share by which the rate "
        f"is below the better zero-shot. Normaliser: {normaliser}."
        "\n\n" + "\n".join(rows)
    )


def _limits(facts: Mapping[str, Any]) -> str:
    lines = [
        "- For this base alone: on another revision, architecture or width it is refused.",
        "- Made for speech like that above; on other voices, rooms and subjects measure it first.",
        "- It keeps the base's own faults, such as words that nobody said.",
    ]
    for said in ((facts["data"] or {}).get("stand_ins") or {}).values():
        lines.append(f"- Of its prompts: {_line(said).partition(';')[0]}.")
    if facts["training"]:
        lines.append(
            f"- Learned with an audio window of {facts['training']['window_s']:g} s; with another, "
            "results differ."
        )
    if _licence(facts):
        lines.append("- The licence is that of the speech; the base has its own.")
    return "\n".join(lines) + "\n"


def _licence(facts: Mapping[str, Any]) -> str | None:
    licence = facts["data"]["licence"] if facts["data"] else None
    return _line(licence) if licence else None


def _line(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
