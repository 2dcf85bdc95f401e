"""Digests of the settings that decide a result; fields declare their part (`decides.py`).

settings(config, "vectors")   {"adapters.0.lr": 0.01, "training.max_loss": 20.0, …}
digest(config, "vectors")     SHA-256 of that as JSON

Values that are the field's default are left out, so that a new key turns no old checkpoint away. Where
a default has changed, the older one is left out. `auto` of `base.dtype` was settled before
(`run/settled.py`). An adapter's own settings and those that it takes from `training` and `steering` are
the same. A base and shards are not of it: they count by hashes of what they hold, which stand beside a
digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from salsa_dist.config.annotations import sections_below
from salsa_dist.config.decides import Kind, decided_by, unsaid
from salsa_dist.config.schema import Config
from salsa_dist.config.sections.adapters import SteeringConfig
from salsa_dist.config.sections.training import TrainingConfig


def digest(config: Config, kind: Kind) -> str:
    """SHA-256 over the settings that decide `kind`."""
    return digest_of(settings(config, kind))


def digest_of(facts: Any) -> str:
    """SHA-256 over facts as JSON has them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def settings(config: Config, kind: Kind) -> dict[str, Any]:
    """The settings that decide `kind` and are not their defaults, by dotted key."""
    assert config.base.dtype != "auto", "a digest is of what a run takes"
    training = config.training
    metrics = {training.dev_metric if training.dev_every is not None else "dev_loss"}
    metrics |= {training.halving.metric} if training.halving is not None else set()
    found = _deciding(_filled(config), kind)
    if kind == "vectors" and metrics != {"dev_loss"}:
        # What is decoded decides which vectors are kept, and who goes on.
        decoded = _deciding(config, "transcripts").items()
        found |= {k: v for k, v in decoded if k.startswith(("evaluation.max_new", "evaluation.decod"))}
    return found


def places(config: Config) -> set[str]:
    """Dotted keys of settings that are only paths."""
    return {key for key, field, _ in leaves(config) if "place" in decided_by(field).kinds}


def leaves(section: BaseModel, place: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every setting below `section`: its dotted key, its field, its value."""
    for name, field, has_sections in _fields(type(section)):
        key, value = f"{place}.{name}" if place else name, getattr(section, name)
        if not has_sections:
            yield key, field, value
            continue
        entries = {f"{key}.{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {}
        for at, below in (entries or {key: value}).items():
            if below is not None:
                yield from leaves(below, at)


@cache
def _fields(section: type[BaseModel]) -> tuple[tuple[str, FieldInfo, bool], ...]:
    """Name and field of each key, and whether sections are below it."""
    fields = section.model_fields.items()
    return tuple((name, field, bool(sections_below(field.annotation))) for name, field in fields)


def _deciding(config: Config, kind: Kind) -> dict[str, Any]:
    return {
        key: to_jsonable_python(
            list(value.items()) if decided_by(field).ordered and isinstance(value, dict) else value
        )
        for key, field, value in leaves(config)
        if kind in decided_by(field).kinds and value != unsaid(field)
    }


def _filled(config: Config) -> Config:
    """The config with all settings in each adapter's entry; dev clips only if they decide."""
    adapters = [
        entry.model_copy(update={k: getattr(own, k) for k in ("sites", "rule", "lr", "steps", "seed")})
        for entry, own in zip(config.adapters, config.adapter_settings(), strict=True)
    ]
    training: dict[str, Any] = {k: _unsaid(TrainingConfig, k) for k in ("lr", "steps", "seed")}
    if config.training.lr_scale == "auto" and not config.method.in_a_bank:
        training["lr_scale"] = _unsaid(TrainingConfig, "lr_scale")
    training["silence_stride"] = config.thinning
    if config.training.halving is None:
        training["dev_clips"] = _unsaid(TrainingConfig, "dev_clips")
    return config.model_copy(
        update={
            "adapters": adapters,
            "steering": SteeringConfig(),
            "training": config.training.model_copy(update=training),
        }
    )


def _unsaid(section: type[BaseModel], name: str) -> Any:
    return unsaid(section.model_fields[name])
