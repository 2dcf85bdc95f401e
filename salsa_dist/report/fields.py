"""Parts of an evaluation by what its shards say of each clip: age, grade, speaker, any field.

    key -> {"age": 7, "grade": "K"}, …  ──by_value("age")──>  [("6", {keys}), ("7", {keys}), …]

A field of more than TOO_MANY different numbers is cut into quarters of the clips. Clips that lack the
field are a part of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from salsa_dist.errors import UserError
from salsa_dist.evaluation.transcripts import Hypothesis

TOO_MANY = 12
NOT_KNOWN = "not known"


def refuse_unknown(names: Sequence[str], hypotheses: Iterable[Hypothesis]) -> None:
    """Raises: UserError for fields that no transcript has."""
    if not names:
        return
    known = sorted({name for h in hypotheses for name in h.fields})
    if unknown := [name for name in names if name not in known]:
        there = f"there are {', '.join(known)}" if known else "there are none"
        raise UserError(
            f"no transcript has the field {', '.join(unknown)}; {there}. Fields come from the shards. "
            "Transcripts of older versions have none: remove RUN/evaluation and evaluate"
        )


def by_value(name: str, facts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, set[str]]]:
    """The keys of `facts` by their value of field `name`, in the order of the values."""
    known = {key: own[name] for key, own in facts.items() if name in own}
    parts: dict[str, set[str]] = {}
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known.values()):
        numbers = {key: float(v) for key, v in known.items()}
        for number, label in _labels(list(numbers.values())):
            parts.setdefault(label, set()).update(k for k, v in numbers.items() if v == number)
    else:
        for text in sorted({str(v) for v in known.values()}):
            parts[text] = {key for key, v in known.items() if str(v) == text}
    if lacking := facts.keys() - known.keys():
        parts[NOT_KNOWN] = set(lacking)
    return list(parts.items())


def _labels(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each different number, in increasing order, with the label of its part."""
    different = sorted(set(values))
    if len(different) <= TOO_MANY:
        return [(value, f"{value:g}") for value in different]
    cuts = np.quantile(values, [0.25, 0.5, 0.75])
    quarter = [int(np.searchsorted(cuts, value, side="left")) for value in different]
    names = {}
    for q in sorted(set(quarter)):
        own = [value for value, of in zip(different, quarter, strict=True) if of == q]
        names[q] = f"{own[0]:g} to {own[-1]:g}" if len(own) > 1 else f"{own[0]:g}"
    return [(value, names[q]) for value, q in zip(different, quarter, strict=True)]
