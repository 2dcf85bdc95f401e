"""The base class of all sections, and their common types: folders, shards, update rules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from salsa_dist.places import Remote, place
from salsa_dist.steering.rules.registry import RULES


class Section(BaseModel):
    """A part of the config tree: it can't be changed, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


def _known_rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"no such update rule; known are {', '.join(RULES)}")
    return name


Rule = Annotated[str, AfterValidator(_known_rule)]


def expand(value: Any) -> Any:
    """A path with the user's home folder for `~`; other values unchanged."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def _local(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("it must be a local folder: only shards can be in a store")
    return expand(value)


Folder = Annotated[Path, BeforeValidator(_local)]
# A folder, or a place in an object store or on a hub, such as s3://bucket/prefix.
Shards = Annotated[
    Path | Remote,
    BeforeValidator(place),
    PlainSerializer(str, return_type=str, when_used="json"),
]
