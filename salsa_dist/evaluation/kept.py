"""Decides which transcripts of an earlier evaluation are kept: those with unchanged settings.

RUN/evaluation/settings.json
{"schema": …, "base": revision, "shards": hash, "settings": {"evaluation.split": "dev", …},
 "adapters": {name: digest}}

A base counts by what its weights hold: other weights in the same folder make other transcripts, and a
folder that was moved makes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salsa_dist import json_file
from salsa_dist.config import Config
from salsa_dist.config.fingerprint import settings
from salsa_dist.run.events import last_start
from salsa_dist.run.folder import RunFolder

SCHEMA = "salsa-dist/transcripts/2"
SCHEMA_0_1 = "salsa-dist/hypotheses/1"
_ADVICE = "remove it, and evaluate again"


def keep_only(config: Config, revision: str, shards: str, digests: Mapping[str, str]) -> list[str]:
    """Drop earlier transcripts unless all that they depend on is the same; what differed, in words.

    Args:
        revision: of the base.
        shards: hash of the shards.
        digests: what the adapters hold, by their names.
    """
    folder = RunFolder(config.run).evaluation
    path = RunFolder(config.run).transcripts_settings
    mine = {
        "schema": SCHEMA,
        "base": revision,
        "shards": shards,
        "settings": settings(config, "transcripts"),
        "adapters": _with_examples(config, digests),
    }
    found = _read(config.run)
    if found == mine:
        return []
    known = found is not None and found == _of_release_0_1(config, revision, shards, digests)
    differ = [] if found is None or known else _differences(found, mine)
    if not known:
        for old in folder.glob("*.json*"):
            old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    json_file.write(path, SCHEMA, mine)
    return differ


def _with_examples(config: Config, digests: Mapping[str, str]) -> dict[str, str]:
    """Digests of adapters; without training, with the language and seed that choose their examples."""
    if config.method.trains or not config.method.adapts:
        return dict(digests)
    of = {a.name: f" {a.language} {a.seed}" for a in config.adapter_settings()}
    return {name: digest + of[name] for name, digest in digests.items()}


def _read(run: Path) -> dict[str, Any] | None:
    """The settings that existing transcripts depend on; None if there are no transcripts.

    Of release 0.1, which knew a base by its folder, without that and with the run's own revision.
    """
    try:
        tree = json_file.read(RunFolder(run).transcripts_settings, (SCHEMA, SCHEMA_0_1), _ADVICE)
    except FileNotFoundError:
        return None
    except json_file.Damaged:  # the transcripts are made again
        return {}
    if tree.get("schema") == SCHEMA_0_1:
        begun = last_start(run)
        tree["base"] = {k: v for k, v in tree["base"].items() if k not in ("name", "revision")}
        tree["revision"] = begun["base"]["revision"] if begun else None
    return tree


def _of_release_0_1(
    config: Config, revision: str, shards: str, digests: Mapping[str, str]
) -> dict[str, Any]:
    """The settings of transcripts of release 0.1, in the format of `_read`."""
    keys = {"dtype", "window_s", "prompt", "layers", "language_as"}
    evaluation = config.evaluation
    return {
        "schema": SCHEMA_0_1,
        "base": config.base.model_dump(mode="json", include=keys),
        "revision": revision,
        "shards": shards,
        "split": evaluation.split,
        "clips": evaluation.clips,
        "max_new_tokens": evaluation.max_new_tokens,
        "decoding": evaluation.decoding.model_dump(
            include={"repetition_penalty", "no_repeat_ngram_size"}
        ),
        "adapters": dict(digests),
    }


def _differences(found: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Names of all differences: the base, the shards, a setting, an adapter."""
    if found.get("schema") != SCHEMA:
        return ["settings of an earlier release"]
    parts = [key for key in ("base", "shards") if found[key] != mine[key]]
    for section in ("settings", "adapters"):
        old, new = found[section], mine[section]
        names = [key for key in sorted({**old, **new}) if old.get(key) != new.get(key)]
        parts += [f"adapter {key}" if section == "adapters" else key for key in names]
    return parts
