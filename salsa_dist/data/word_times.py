"""Word times of a sample: "words" in its JSON, `[[word, start, end], …]` in seconds.

facts ──words_of──► ((word, start, end), …), or None: others' tars may have a "words" of another kind
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from salsa_dist.data.clip import Word


def words_of(facts: Mapping[str, Any]) -> tuple[Word, ...] | None:
    """The words with their times that a sample's JSON has; None where it has none of this form.

    Times don't decrease, and the words are those of the text.
    """
    words = facts.get("words")
    if not isinstance(words, list) or not all(map(_is_word, words)):
        return None
    starts = [start for _, start, _ in words]
    said = " ".join(word for word, _, _ in words).split()
    if starts != sorted(starts) or said != str(facts.get("text", "")).split():
        return None
    return tuple((word, float(start), float(end)) for word, start, end in words)


def moved(words: Iterable[Word], later: float = 0.0, longer: float = 1.0) -> tuple[Word, ...]:
    """`words` of a clip that is `longer` times as long and begins `later`, in seconds."""
    return tuple((word, later + longer * a, later + longer * b) for word, a, b in words)


def _is_word(own: Any) -> bool:
    if not isinstance(own, list) or len(own) != 3 or not isinstance(own[0], str):
        return False
    times = own[1:]
    return (
        all(type(t) in (int, float) and math.isfinite(t) for t in times) and 0 <= times[0] <= times[1]
    )
