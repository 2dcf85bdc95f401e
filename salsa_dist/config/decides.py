"""Marks that declare what a config field decides, beside its type: `lr: Vectors[float]`.

Vectors      what is trained; and so what it transcribes
Transcripts  what a transcript says, whatever was trained
Both         each of them by itself, such as the precision of the base
Coverage     which transcripts there are; each says itself of which it is
Place        where something lies: it may differ from node to node, and what lies there is compared
Neither      time, memory, what is kept: no result
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic.fields import FieldInfo

Kind = Literal["vectors", "transcripts", "coverage", "place"]
T = TypeVar("T")


@dataclass(frozen=True)
class Decides:
    """Mark of a field: what its value decides, and whether the order of a mapping matters.

    Attributes:
        unsaid: the value that no digest names; None: the field's default.
    """

    kinds: frozenset[Kind]
    ordered: bool = False
    unsaid: Any = None


Vectors = Annotated[T, Decides(frozenset({"vectors"}))]
# Releases before `auto` had 0.01 and {} as the defaults.
Rate = Annotated[T, Decides(frozenset({"vectors"}), unsaid=0.01)]
RateScale = Annotated[T, Decides(frozenset({"vectors"}), ordered=True, unsaid={})]
# Releases before `auto` had 1 as the default.
Stride = Annotated[T, Decides(frozenset({"vectors"}), unsaid=1)]
Transcripts = Annotated[T, Decides(frozenset({"transcripts"}))]
Both = Annotated[T, Decides(frozenset({"vectors", "transcripts"}))]
# The precision of the base. Releases before `auto` had float32 as the default.
Precision = Annotated[T, Decides(frozenset({"vectors", "transcripts"}), unsaid="float32")]
Coverage = Annotated[T, Decides(frozenset({"coverage"}))]
Place = Annotated[T, Decides(frozenset({"place"}))]
Neither = Annotated[T, Decides(frozenset())]


def unsaid(field: FieldInfo) -> Any:
    """The value with which a field is not in any digest: its default, unless its mark names another."""
    own = decided_by(field).unsaid
    return field.get_default(call_default_factory=True) if own is None else own


def decided_by(field: FieldInfo) -> Decides:
    """The mark of a field."""
    [mark] = [m for m in field.metadata if isinstance(m, Decides)]
    return mark
