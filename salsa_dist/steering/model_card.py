"""A model card in Hugging Face's form, from the facts of `adapter.json`.

---
library_name: salsa-dist      front matter, YAML: what the hub searches by
---
# bg                          what it is, how to use it, what it was trained on, its limits
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from salsa_dist.steering.rules import rule_named

# Licences as corpora state them, in the hub's words; any other is `other`, with its name beside.
_LICENCES = {
    **{name: name for name in ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0")},
    **{name: name for name in ("cc-by-3.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")},
    **{name: name for name in ("gpl-2.0", "gpl-3.0", "odc-by", "odbl")},
    "cc0": "cc0-1.0",
    "gpl-2": "gpl-2.0",
    "gpl-3": "gpl-3.0",
}


def model_card(facts: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
        facts: the tree of `adapter.json`.
    """
    return f"---\n{_front_matter(facts)}---\n\n" + "\n\n".join(
        [
            f"# {facts['name']}",
            _what_it_is(facts),
            "## Use\n\n" + _use(facts),
            "## Training\n\n" + _training(facts),
            "## Limits\n\n" + _limits(facts),
        ]
    )


def _front_matter(facts: Mapping[str, Any]) -> str:
    fields: dict[str, Any] = {"library_name": "salsa-dist"}
    if facts["base"]["name"]:
        fields["base_model"] = facts["base"]["name"]
    if facts["language"]:
        fields["language"] = [facts["language"]]
    if licence := _licence(facts):
        known = _LICENCES.get(licence.lower())
        fields |= {"license": known} if known else {"license": "other", "license_name": licence}
    fields["pipeline_tag"] = "automatic-speech-recognition"
    fields["tags"] = ["salsa-dist", "steering-vectors", "speech-llm", facts["rule"]]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _what_it_is(facts: Mapping[str, Any]) -> str:
    base = facts["base"]
    sites: dict[str, int] = {}
    for site in facts["sites"]:
        component = site.partition(".")[0]
        sites[component] = sites.get(component, 0) + 1
    where = " and ".join(f"{n} layer{'s' * (n > 1)} of the {c}" for c, n in sites.items())
    formula = rule_named(facts["rule"]).formula
    model = f" ({base['architecture']})" if base["architecture"] else ""
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    language = f" for the language `{facts['language']}`" if facts["language"] else ""
    return (
        f"Steering vectors{language}, for the frozen speech-LLM "
        f"`{base['name'] or 'not named'}`{model}{revision}: one vector for each of {where}, "
        f"{facts['trained_numbers']:,} numbers in all. Each is added to its layer's output by the rule "
        f"`{facts['rule']}`, `{formula}`. The base's weights are not part of it and do not change.\n\n"
        f"SHA-256 of `adapter.safetensors`: `{facts['sha256']}`"
    )


def _use(facts: Mapping[str, Any]) -> str:
    base, training = facts["base"], facts["training"]
    arguments = [_quoted(base["name"])]
    if base["revision"] and not base["revision"].startswith("local-"):
        arguments.append(f"revision={_quoted(base['revision'])}")
    if training:
        arguments.append(f"window_s={training['window_s']:g}")
    language = f"language={_quoted(facts['language'])}"
    code = [
        "from salsa_dist import SteeringVectors, load_speech_llm, transcribe",
        "",
        f"base = load_speech_llm({', '.join(arguments)})",
        f"vectors = SteeringVectors.load({_quoted(facts['name'])})  # this folder",
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
        lines.append(
            f"{training['steps']} steps at a learning rate of {training['lr']:g} at most, seed "
            f"{training['seed']}, audio window {training['window_s']:g} s, by salsa-dist "
            f"{training['salsa_dist']}; plain cross-entropy of the transcripts."
        )
    else:
        lines.append("No training run of its own is recorded: it may be scaled or averaged.")
    return " ".join(lines)


def _limits(facts: Mapping[str, Any]) -> str:
    lines = [
        "- For this base alone: on another revision, architecture or width it is refused.",
        "- Made for speech like that above; on other voices, rooms and subjects measure it first.",
        "- It keeps the base's own faults, such as words that nobody said.",
    ]
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
