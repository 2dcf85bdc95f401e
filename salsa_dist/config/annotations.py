"""Reads the annotation of a config field: the types of its value, sections below it, its text."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def types_of(annotation: Any) -> list[Any]:
    """The types that a value may have, None left out."""
    if get_origin(annotation) is Annotated:
        return types_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [t for arg in get_args(annotation) if arg is not type(None) for t in types_of(arg)]
    return [annotation]


def is_section(kind: Any) -> bool:
    """Whether a type is a section of the config."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def sections_below(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a value, or an entry of a list, may be."""
    types = types_of(annotation)
    entries = [t for kind in types if get_origin(kind) is list for t in types_of(get_args(kind)[0])]
    return [t for t in [*types, *entries] if is_section(t)]


def written(annotation: Any) -> str:
    """The text of an annotation, without the marks beside the type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return written(parts[0])
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if origin in (Union, UnionType):
        return " | ".join(map(written, parts))
    name = "None" if annotation is type(None) else (origin or annotation).__name__
    return f"{name}[{', '.join(map(written, parts))}]" if parts else str(name)
