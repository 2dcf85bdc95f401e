"""A config from a YAML file and then from dotted overrides.

    config = load_config("demo/demo.yaml", ["training.steps=20", "placement.kind=full"])

An unknown key or a wrong type is a `UserError` that names the place and the nearest right key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from salsa_dist.config.annotations import is_section, types_of
from salsa_dist.config.schema import Config
from salsa_dist.errors import UserError

# libyaml's, ten times as fast: a sweep reads the config of each job.
_Loader = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
# A clock time stays text. YAML 1.1 counts its seconds: 12:00:00, the way to write a time limit on
# Slurm, would be 43200 without a word.
_CLOCK = ("tag:yaml.org,2002:str", re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?$"))
_Loader.yaml_implicit_resolvers = {  # type: ignore[attr-defined]
    first: [_CLOCK, *known] if first in "-+0123456789" else known
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (YAML), apply `overrides` (`section.key=value`, values as YAML), check it all.

    List entries are addressed by number: `adapters.0.lr=0.02`.

    >>> load_config("config.yaml", ["training.steps=2"]).training.steps
    2
    """
    tree = read_yaml(Path(path), "config", "run, base, data …")
    for text in overrides:
        override(tree, text)
    return parse_config(tree, str(path))


def read_yaml(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The tree in a YAML file; `what` it is and the `keys` that it has are named in errors."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe one
    except OSError as e:
        raise UserError(f"{what} {path} can't be read ({e.strerror}): name a YAML file") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{what} {path} is not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{what} {path} holds no settings: it must be a tree with {keys}")
    return tree


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """Check a settings tree; `where` names its source in the error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"{where}: {explained(e, Config)}") from e


def override(tree: dict[str, Any], text: str) -> None:
    """Put `section.key=value` into a settings tree, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} is not of the form section.key=value")
    *parents, last = key.split(".")
    node: Any = tree
    try:
        for part in parents:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
        node[int(last) if isinstance(node, list) else last] = yaml.safe_load(value)
    except (ValueError, IndexError, AttributeError, TypeError) as e:
        raise UserError(f"override {text!r}: the config has no place {key!r}") from e
    except yaml.YAMLError as e:
        raise UserError(f"override {text!r}: {value!r} is not a YAML value") from e


def explained(error: ValidationError, schema: type[BaseModel]) -> str:
    """Everything that is wrong with a tree of `schema`, in one line; an unknown key by the nearest."""
    wrong: dict[str, list[str]] = {}
    for one in error.errors():
        place, said = _explain(one, schema)
        wrong.setdefault(place, []).append(said)
    # A union says what is wrong for each of its types.
    return "; ".join(f"{place}{' or '.join(dict.fromkeys(said))}" for place, said in wrong.items())


def _explain(error: Any, schema: type[BaseModel]) -> tuple[str, str]:
    """Words one pydantic error for users: its key, and what is wrong there."""
    keys, known = _place(error["loc"], schema)
    dotted = ".".join(keys)
    if error["type"] in ("extra_forbidden", "invalid_key"):
        said = f"; {_nearest(keys[-1], known)}" if known else ""
        return f"unknown key {dotted!r}", said
    if error["type"] == "missing":
        return f"{dotted!r} is missing", ""
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        dotted = f"{dotted}.{context['discriminator'].strip(chr(39))}"
        return f"{dotted}: ", f"{context['tag']!r} is unknown; {_nearest(context['tag'], tags)}"
    if error["type"] == "union_tag_not_found":
        dotted = f"{dotted}.{error['ctx']['discriminator'].strip(chr(39))}"
        return f"{dotted!r} is missing", ""
    message = error["msg"].removeprefix("Value error, ")
    if not dotted:
        return "", message
    # A whole section is not shown again.
    got = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{dotted}: ", message + got


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)


def _place(loc: Sequence[str | int], schema: type[BaseModel]) -> tuple[list[str], list[str]]:
    """An error's place as keys, without the types that pydantic names in it; the keys known there."""
    keys: list[str] = []
    known: list[str] = []
    here: Any = schema
    for part in loc:
        types = types_of(here)
        if len(types) > 1:  # the error is about one type of a union, which is named and is no key
            here = next((t for t in types if is_section(t) and part in _tags(t)), Any)
            continue
        if part == "[key]":
            continue
        keys.append(str(part))
        if is_section(types[0]):
            known = list(types[0].model_fields)
            here = types[0].model_fields[part].annotation if part in known else Any
        else:
            here = (get_args(types[0]) or (Any,))[-1]
    return keys, known


def _tags(section: type[BaseModel]) -> tuple[Any, ...]:
    kind = section.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()
