"""Errors of code-switched speech apart: by language, and where the language switches.

    language    zh-en ──languages_of──> ("zh", "en")
    reference   我   用   app   吧        each token's language is told by its script
    switch           ^    ^     ^        a token beside one of the other language
    hypothesis  我   用   map   吧        an error of en, and at a switch

A token without letters, such as 50, is of neither language: it counts for none, and what is beside it
is looked for past it. An inserted token counts for its own language, and as at a switch where the
reference's tokens before and after it are of two languages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from salsa_dist.metrics import normalise

SWITCH = "switch"
"""The part of tokens at switch points; all other parts are named by their language."""


def languages_of(language: str) -> tuple[str, str] | None:
    """The languages of characters and of words in a mixed code; None for any other code."""
    if normalise.unit(language) != "mixed":
        return None
    codes = [code for code in re.split(r"[-_+/\s]+", language.lower()) if code]
    characters = [code for code in codes if normalise.unit(code) == "character"]
    words = [code for code in codes if code not in characters]
    return "+".join(characters), "+".join(words) or "other"


def languages_by_token(tokens: Sequence[str], language: str) -> list[str | None]:
    """The language of each token; None for a token without letters.

    Raises:
        ValueError: `language` is not mixed.
    """
    pair = languages_of(language)
    if pair is None:
        raise ValueError(f"{language} is one language")
    return [_of(token, pair) for token in tokens]


def counts(
    ref: Sequence[str], hyp: Sequence[str], chunks: Sequence[Any], language: str
) -> dict[str, Counter[str]]:
    """Reference tokens (`length`) and errors by kind, for each part.

    Args:
        ref, hyp: tokens.
        chunks: their alignment, as jiwer's.
        language: a mixed code.
    """
    pair = languages_of(language)
    if pair is None:
        return {}
    parts: dict[str, Counter[str]] = {name: Counter() for name in (*pair, SWITCH)}
    own, said = languages_by_token(ref, language), languages_by_token(hyp, language)
    before, after = _nearest(own), _nearest(own[::-1])[::-1]
    # Place i is before token i: the languages nearest to it on both sides.
    around = list(zip([None, *before], [*after, None], strict=True))

    def add(name: str | None, kind: str, switch: bool) -> None:
        if name is not None:
            parts[name][kind] += 1
        if switch:
            parts[SWITCH][kind] += 1

    for chunk in chunks:
        for i in range(chunk.ref_start_idx, chunk.ref_end_idx):
            beside = {around[i][0], around[i + 1][1]} - {None, own[i]}
            at_switch = own[i] is not None and bool(beside)
            add(own[i], "length", at_switch)
            if chunk.type != "equal":
                kind = "deletions" if chunk.type == "delete" else "substitutions"
                add(own[i], kind, at_switch)
        if chunk.type == "insert":
            left, right = around[chunk.ref_start_idx]
            at_switch = left is not None and right is not None and left != right
            for i in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                add(said[i], "insertions", at_switch)
    return parts


def _of(token: str, pair: tuple[str, str]) -> str | None:
    if normalise.is_spaceless(token[0]):
        return pair[0]
    return pair[1] if any(c.isalpha() for c in token) else None


def _nearest(languages: Sequence[str | None]) -> list[str | None]:
    """For each position, the last language up to this position."""
    found: list[str | None] = []
    last: str | None = None
    for language in languages:
        last = language or last
        found.append(last)
    return found
