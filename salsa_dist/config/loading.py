"""A config from a YAML file and then from dotted overrides.

    config = load_config("demo/demo.yaml", ["training.steps=20", "placement.kind=full"])

An unknown key or a wrong type is a `UserError` that names the place and the nearest right key.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from salsa_dist.config.schema import _METHODS, AdapterConfig, Config
from salsa_dist.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (YAML), apply `overrides` (`section.key=value`, values as YAML), check it all.

    List entries are addressed by number: `adapters.0.lr=0.02`.
    """
    tree = read_yaml(Path(path), "config", "run, base, data …")
    for text in overrides:
        override(tree, text)
    return parse_config(tree, str(path))


def read_yaml(path: Path, what: str, keys: str) -> dict[str, Any]:
    """The tree in a YAML file; `what` it is and the `keys` that it has are named in errors."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{what} {path} can't be read ({e.strerror}): name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{what} {path} is not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{what} {path} holds no settings: it must be a tree with {keys}")
    return tree


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """Check a settings tree; `where` names its source in the error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"{where}: " + "; ".join(_explain(err) for err in e.errors())) from None


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
    except (ValueError, IndexError, AttributeError, TypeError):
        raise UserError(f"override {text!r}: the config has no place {key!r}") from None
    except yaml.YAMLError:
        raise UserError(f"override {text!r}: {value!r} is not a YAML value") from None


def _explain(error: Any) -> str:
    """One pydantic error in our words."""
    loc = [str(part) for part in error["loc"]]
    dotted = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = _keys_at(loc[:-1])
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
        return f"unknown key {dotted!r}; {hint}"
    if error["type"] == "missing":
        return f"{dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message} (got {error['input']!r})" if dotted else message


def _keys_at(loc: Sequence[str]) -> list[str]:
    model: Any = Config
    for part in loc:
        if part in _METHODS:
            model = _METHODS[part]
        elif not part.isdigit() and part != "method":
            annotation = model.model_fields[part].annotation
            model = AdapterConfig if part == "adapters" else annotation
    return list(model.model_fields)
