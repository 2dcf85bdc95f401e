"""The rules for each corpus's marks: one file per corpus, with its `RULES`.

    "it's <noise> a mag- magnet" ──apply(RULES, …)──► "it's a magnet", {"noises", "partial words"}

A rule says what it does to a text, or that an utterance which it matches is dropped. `Texts` counts
what each rule touched, for the card and for `shards stats`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from salsa_dist.corpus.utterance import Corpus, Drops, Utterance


@dataclass(frozen=True)
class Rule:
    """Replaces matches of `pattern` by `by`; with `drops`, the whole utterance is dropped.

    Attributes:
        name: in counts, such as "noises".
        said: in the card.
    """

    name: str
    said: str
    pattern: re.Pattern[str]
    by: str = " "
    drops: bool = False


def apply(rules: tuple[Rule, ...], text: str) -> tuple[str | None, set[str]]:
    """The text (None: the utterance is dropped) with single spaces, and the rules that touched it."""
    touched = set()
    for rule in rules:
        changed = rule.pattern.sub(rule.by, text)
        if changed == text:
            continue
        touched.add(rule.name)
        if rule.drops:
            return None, touched
        text = changed
    return " ".join(text.split()), touched


@dataclass
class Texts:
    """The rules of one corpus, with counts of changed and dropped texts by language."""

    rules: tuple[Rule, ...]
    touched: dict[str, Counter[str]] = field(default_factory=dict)
    drops: Drops = field(default_factory=Drops)

    def clean(self, text: str, language: str) -> str | None:
        """The text by the rules; None, and counted, where the utterance is dropped."""
        cleaned, touched = apply(self.rules, text)
        if cleaned is None:
            self.drop(language, next(r.name for r in self.rules if r.drops and r.name in touched))
            return None
        self.touched.setdefault(language, Counter()).update(touched)
        if not cleaned:
            self.drop(language, "nothing said")
            return None
        return cleaned

    def drop(self, language: str, why: str, place: str | Path = "") -> None:
        """Count one dropped utterance; `place` is its file, and line."""
        self.drops.add(language, why, place)

    def corpus(self, utterances: list[Utterance], licence: str, source: str) -> Corpus:
        """A `Corpus` with the rules said and counted."""
        said = tuple(rule.said for rule in self.rules)
        counts, first = self.drops.counts, self.drops.first
        return Corpus(
            utterances, licence, source, said, touched=self.touched, dropped=counts, first=first
        )
